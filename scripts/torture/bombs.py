"""Small files that unpack to large ones: YAML that repeats itself, zips of zeros."""

import io
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from data.config import DataConfig
from data.errors import DataError
from data.open import open_source
from scripts.torture.audit import Trial, refused
from scripts.torture.configs import said, tried
from scripts.torture.crafted import bomb, merge_bomb


def yaml_bombs(root: Path, trials: int) -> Iterator[Trial]:
    """As a config, as an override and as the config of a run directory."""
    for number in range(trials):
        text = (bomb(3 + number % 20), merge_bomb(5 + number % 20))[number % 2]

        def as_config(text: str = text) -> str:
            _, valid, wrong = tried(root / "work" / "a.yaml", text.encode(), [f"variants={{a: [{text[8:200]}]}}"])
            return wrong or ("was taken" if valid else "")

        def as_run(text: str = text) -> str:
            run = root / "runs" / "bomb" / "main"
            run.mkdir(parents=True, exist_ok=True)
            (run / "config.yaml").write_text(text, encoding="utf-8")
            (run / "metrics.jsonl").write_text('{"step": 1, "loss/train": 1}\n', encoding="utf-8")
            return said(["compare", str(run)], (1,))

        yield f"laughs or merges {number}, a config", as_config
        yield f"laughs or merges {number}, a run", as_run


def zip_bomb(size: int, names: Iterable[str] = ("tokens.npy",)) -> bytes:
    """A zip whose members have `size` zeros each, a thousandth of that packed."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name in names:
            with archive.open(name, "w") as member:
                for _ in range(size // 2**20):
                    member.write(bytes(2**20))
    return packed.getvalue()


def zip_bombs(root: Path, trials: int) -> Iterator[Trial]:
    """As token ids and as text: .npz, .zip, .gz; members that lead elsewhere."""
    members = ("../../escaped", "/tmp/escaped", "tokens.npy")
    gzipped = zlib.compress(bytes(2**26), 9, 31)
    contents = {"npz": zip_bomb(2**26), "zip": zip_bomb(2**20, members), "gz": gzipped, "txt": gzipped}
    for number in range(trials):
        suffix = list(contents)[number % len(contents)]
        path = root / "work" / f"bomb{number}.{suffix}"

        def read(path: Path = path, suffix: str = suffix, tokens: bool = bool(number // 4 % 2)) -> str:
            path.write_bytes(contents[suffix])
            kind = "tokens" if tokens else "text"
            return refused(lambda: open_source(DataConfig(kind=kind, path=str(path))), DataError)

        yield path.name, read
