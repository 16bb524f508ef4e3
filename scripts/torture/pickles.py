"""Pickles in the place of every file that a run reads."""

import io
import os
import pickle
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from data.config import DataConfig
from data.errors import DataError
from data.open import open_source
from scripts.torture.audit import Trial, refused
from scripts.torture.configs import said, tried
from train.disk import read_json
from train.errors import UserError
from train.run.sample import read_tokenizer


class Marker:
    """Whoever unpickles it makes a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


def pickles(root: Path, trials: int) -> Iterator[Trial]:
    """By every protocol, as every kind of file that is read, bare and inside an .npy of objects."""
    bare = [pickle.dumps(Marker(root / "executed"), protocol) for protocol in range(pickle.HIGHEST_PROTOCOL + 1)]
    array = np.empty(1, object)
    array[0] = Marker(root / "executed")
    boxed, zipped = io.BytesIO(), io.BytesIO()
    np.save(boxed, array, allow_pickle=True)
    np.savez(zipped, allow_pickle=True, tokens=array)
    contents = [*bare, boxed.getvalue(), zipped.getvalue()]
    done = 0
    while done < trials:
        for content in contents:
            for name, read in _readers(root, content):
                if done < trials:
                    done += 1
                    yield f"{name}, pickle of {len(content)} bytes", read


def _readers(root: Path, content: bytes) -> Iterator[Trial]:
    """Every way in that a file of somebody else's has."""
    run = root / "runs" / "tiny" / "main"
    for name in ("a.npy", "a.npz", "a.pkl", "a.bin"):
        path = root / "work" / name

        def as_tokens(path: Path = path) -> str:
            path.write_bytes(content)
            path.with_suffix(".json").write_bytes(content)
            return refused(lambda: open_source(DataConfig(kind="tokens", path=str(path))), DataError)

        yield f"data.kind tokens, {name}", as_tokens

    def as_text() -> str:
        (root / "work" / "a.txt").write_bytes(content)
        return refused(lambda: open_source(DataConfig(path=str(root / "work" / "a.txt"))), DataError)

    def as_config() -> str:
        return tried(root / "work" / "a.yaml", content, ())[2]

    yield "data.kind text", as_text
    yield "a config", as_config
    for name in ("tokenizer.json", "data.json", "choices.json", "summary.json"):

        def as_json(name: str = name) -> str:
            run.mkdir(parents=True, exist_ok=True)
            (run / name).write_bytes(content)
            read = (lambda: read_tokenizer(run)) if name == "tokenizer.json" else (lambda: read_json(run / name))
            return refused(read, UserError)

        yield name, as_json
    yield "a run directory", lambda: _as_run(run, content)


def _as_run(run: Path, content: bytes) -> str:
    """`deltaflow compare` of a folder whose files are all pickles."""
    run.mkdir(parents=True, exist_ok=True)
    for name in ("config.yaml", "metrics.jsonl", "summary.json"):
        (run / name).write_bytes(content + b"\n")
    return said(["compare", str(run)], (1,))
