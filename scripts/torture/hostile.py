"""Files and names that were made to run code, to fill the memory or the disk, or to write where they must not.

A trial is one command line, or one call of what it calls to read a file, in this process, under an audit hook that
sees every file that is opened for writing, made, renamed or removed, and every program that is started. It held when
the answer was an error in one line (or, for a name that is harmless, a result), in at most LIMIT_S seconds of
processor time, nothing was run (a pickle here makes a file when it is loaded), and nothing was written outside of the
folder that runs go to.
"""

import contextlib
import io
import os
import pickle
import random
import struct
import sys
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.config import DataConfig
from data.open import open_source
from data.tokenizer import DataError
from scripts.torture.configs import said, tried
from scripts.torture.crafted import bomb, merge_bomb
from scripts.torture.row import Row
from train.config.load import ConfigError, from_mapping
from train.run.errors import RunError
from train.run.generate import read_tokenizer
from train.run.rundir import claim, directory_of, read_json

LIMIT_S = 5.0
PICKLES, NAMES, BOMBS, HEADERS = 100, 300, 20, 500
_SHOWN = 5
_WRITES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate", "shutil.rmtree"}
_RUNS = {"os.system", "subprocess.Popen", "os.exec", "os.posix_spawn", "os.fork", "os.forkpty", "pickle.find_class"}


@dataclass
class Watch:
    """What an audit hook saw since `clear`."""

    written: list[str]
    run: list[str]
    on: bool = False

    def hook(self, event: str, arguments: tuple) -> None:
        if not self.on:
            return
        if event == "open":
            path, _, flags = arguments
            writing = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC)
            if writing and isinstance(path, str | bytes | os.PathLike):
                self.written.append(os.path.abspath(os.fsdecode(path)))
        elif event in _WRITES:
            paths = [a for a in arguments[:2] if isinstance(a, str | bytes | os.PathLike)]
            self.written += [os.path.abspath(os.fsdecode(path)) for path in paths]
        elif event in _RUNS:
            self.run.append(f"{event} {arguments[:2]!r:.80}")


_WATCH: list[Watch] = []  # a hook cannot be taken away, so there is one a process


@contextlib.contextmanager
def watching() -> Iterator[Watch]:
    """Listens for the time of the `with`."""
    if not _WATCH:
        _WATCH.append(Watch([], []))
        sys.addaudithook(_WATCH[0].hook)
    watch = _WATCH[0]
    watch.written, watch.run, watch.on = [], [], True
    try:
        yield watch
    finally:
        watch.on = False


class Marker:
    """Whoever unpickles it makes a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


def rows(scale: float, seed: int) -> Iterable[Row]:
    """Five rows."""
    here = os.getcwd()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder).resolve()
        (root / "runs").mkdir()
        (root / "work").mkdir()
        os.chdir(root / "work")
        try:
            yield _sweep("a pickle in the place of a file", "never loaded", _pickles(root, _n(PICKLES, scale)), root)
            names = _names(root, random.Random(f"{seed} names"), _n(NAMES, scale))
            yield _sweep("a name that leads elsewhere", "nothing is written outside of runs_dir", names, root)
            yield _sweep("a bomb of YAML", "refused, nothing expanded", _yaml_bombs(root, _n(BOMBS, scale)), root)
            yield _sweep("a bomb of zip", "refused, nothing unpacked", _zip_bombs(root, _n(BOMBS, scale)), root)
            headers = _headers(root, random.Random(f"{seed} headers"), _n(HEADERS, scale))
            yield _sweep("a crafted header of token ids", "refused, or read within its file", headers, root)
        finally:
            os.chdir(here)


def _n(trials: int, scale: float) -> int:
    return max(1, round(trials * scale))


Trial = tuple[str, Callable[[], str]]  # what it is, and a call that says what is wrong


def _sweep(fault: str, promise: str, trials: Iterable[Trial], root: Path) -> Row:
    broken, count, slowest = [], 0, 0.0
    for name, trial in trials:
        count += 1
        before = _listing(root)
        began = time.process_time()
        with watching() as watch:
            wrong = trial()
        seconds = time.process_time() - began
        slowest = max(slowest, seconds)
        outside = sorted({path for path in watch.written if not _allowed(path, root)})
        new = sorted(_listing(root) - before)
        if seconds > LIMIT_S:
            wrong = wrong or f"took {seconds:.1f} s"
        if watch.run:
            wrong = f"ran {watch.run[0]}"
        if outside or new:
            wrong = f"wrote {(outside or new)[0]}"
        if (root / "executed").exists():
            wrong = "was executed"
            (root / "executed").rmdir()
        if wrong:
            broken.append(f"{name}: {wrong}")
    note = f"0 executed, 0 writes outside; the slowest took {slowest:.2f} s" if not broken else ""
    return Row(fault, promise, count, count - len(broken), note, tuple(broken[:_SHOWN]))


def _allowed(path: str, root: Path) -> bool:
    """Runs go to runs/; the trials' own files are in work/. Python's caches of compiled modules are no harm."""
    inside = any(path == str(root / part) or path.startswith(f"{root / part}{os.sep}") for part in ("runs", "work"))
    return inside or path == os.devnull or "__pycache__" in path


def _listing(root: Path) -> set[str]:
    """All but what lies in runs/ and work/."""
    return {str(path) for path in root.iterdir() if path.name not in ("runs", "work", "executed")} | {
        str(path) for path in root.parent.glob(f"{root.name}*") if path != root
    }


def _refused(call: Callable[[], object], *kinds: type[Exception]) -> str:
    """What is wrong with an answer that has to be one of these errors, in one line."""
    try:
        call()
    except kinds as error:
        return "" if "\n" not in str(error) and len(str(error)) < 2000 else f"said {str(error)[:80]!r}"
    except BaseException as error:
        return f"{type(error).__name__}: {str(error)[:80]!r}"
    return "was taken"


# Pickles


def _pickles(root: Path, trials: int) -> Iterator[Trial]:
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
            return _refused(lambda: open_source(DataConfig(kind="tokens", path=str(path))), DataError)

        yield f"data.kind tokens, {name}", as_tokens

    def as_text() -> str:
        (root / "work" / "a.txt").write_bytes(content)
        return _refused(lambda: open_source(DataConfig(path=str(root / "work" / "a.txt"))), DataError)

    def as_config() -> str:
        return tried(root / "work" / "a.yaml", content, ())[2]

    yield "data.kind text", as_text
    yield "a config", as_config
    for name in ("tokenizer.json", "data.json", "choices.json", "summary.json"):

        def as_json(name: str = name) -> str:
            run.mkdir(parents=True, exist_ok=True)
            (run / name).write_bytes(content)
            read = (lambda: read_tokenizer(run)) if name == "tokenizer.json" else (lambda: read_json(run / name))
            return _refused(read, RunError)

        yield name, as_json
    yield "a run directory", lambda: _as_run(run, content)


def _as_run(run: Path, content: bytes) -> str:
    """`deltaflow compare` of a folder whose files are all pickles."""
    run.mkdir(parents=True, exist_ok=True)
    for name in ("config.yaml", "metrics.jsonl", "summary.json"):
        (run / name).write_bytes(content + b"\n")
    return said(["compare", str(run)], (1,))


# Names


TRAVERSALS = (
    *("..", "../x", "../../x", "a/../../x", "/tmp/x", "//x", "~", "~/x", "~root", ".", "./x", "x/", "x/.", "", " "),
    *("x\0y", "\0", "x\ny", "x\x1b[2J", "a" * 121, "a" * 5000, "..\\x", "C:\\x", "\\\\host\\x", "x:y", "$HOME", "`id`"),
    *(
        "$(touch x)",
        ";id",
        "|id",
        "-rf",
        "--help",
        "\u202ex",
        "．．／x",
        "%2e%2e%2f",
        "x*",
        "?",
        "[a]",
        "{a}",
        "<x>",
        "a..b",
    ),
    *("...", ".hidden", "ＮＵＬ", "\ud800", "é", "a/b", "a\\b", "x\t", "\u2025", "..;/", "..%00", "%00", "file:///x"),
)


def _names(root: Path, draw: random.Random, trials: int) -> Iterator[Trial]:
    """Names of runs, variants and sweep values from a list and from bits of it, to the making of their folder."""
    bits = ("..", "/", "\\", ".", "~", "\0", "a", "=", ",", "-", " ", "%", "\n", "\u202e", os.sep * 2)
    for number in range(trials):
        text = TRAVERSALS[number] if number < len(TRAVERSALS) else "".join(draw.choices(bits, k=draw.randint(1, 8)))
        kind = ("name", "variant", "label")[number % 3 if number >= len(TRAVERSALS) else 0]
        yield f"{kind} {text!r:.40}", lambda text=text, kind=kind: _claimed(root, text, kind)
        if number < len(TRAVERSALS):
            for kind in ("variant", "label"):
                yield f"{kind} {text!r:.40}", lambda text=text, kind=kind: _claimed(root, text, kind)


def _claimed(root: Path, text: str, kind: str) -> str:
    """Makes the run directories of an experiment with such a name, if it is one."""
    keys: dict[str, object] = {"name": "x", "runs_dir": str(root / "runs")}
    if kind == "name":
        keys["name"] = text
    elif kind == "variant":
        keys["variants"] = {text: {}}
    else:  # part of a sweep point's name
        keys["sweep"] = {"data.path": [text or "x", "y"]}
    try:
        experiment = from_mapping(keys)
    except ConfigError as error:
        return "" if all(line.isprintable() for line in str(error).splitlines()) else f"said {str(error)[:80]!r}"
    except BaseException as error:
        return f"{type(error).__name__}: {str(error)[:80]!r}"
    for variant in experiment.variants:
        try:
            if directory_of(variant).resolve().parent.parent != root / "runs":
                return f"led to {str(directory_of(variant))!r:.80}"
            claim(variant)
        except RunError as error:
            return "" if "\n" not in str(error) else f"said {str(error)[:80]!r}"
        except BaseException as error:
            return f"{type(error).__name__}: {str(error)[:80]!r}"
    return ""


# Bombs


def _yaml_bombs(root: Path, trials: int) -> Iterator[Trial]:
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


def _zip_bombs(root: Path, trials: int) -> Iterator[Trial]:
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
            return _refused(lambda: open_source(DataConfig(kind=kind, path=str(path))), DataError)

        yield path.name, read


# Headers


def npy(header: str, body: bytes = bytes(640)) -> bytes:
    text = header.encode("latin-1", "replace") + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + body


SHAPES = ("32", "-1", "0", "10**9", "9" * 18, "9" * 40, "9" * 400, "True", "1.5", "'a'", str(2**62), f"-{2**63}", "1,1")
DTYPES = ("'|O'", "'O'", "[('a', '<i8')]", "('<u2', (10**9,))", "'<V0'", "'<m8'", "None", "3", "'<c16'", "'>u2'", "''")
TEXTS = (
    "{",
    "(" * 5000,
    "-" * 3000 + "1",
    "1+" * 3000 + "1",
    "__import__('os').mkdir('executed')",
    "if x:\n y\nz",
    "'''",
)


def _headers(root: Path, draw: random.Random, trials: int) -> Iterator[Trial]:
    """Shapes and dtypes that cannot be, then a good header with some bytes changed."""
    base = "{{'descr': {}, 'fortran_order': False, 'shape': ({},), }}"
    made = [npy(base.format("'<u2'", shape)) for shape in SHAPES]
    made += [npy(base.format(dtype, "32")) for dtype in DTYPES] + [npy(text) for text in TEXTS]
    good = npy(base.format("'<u2'", "320"), b"\1\0" * 320)
    end = good.index(b"\n")
    for number in range(trials):
        content = bytearray(made[number] if number < len(made) else good)
        for _ in range(0 if number < len(made) else draw.randint(1, 3)):
            content[draw.randrange(8, end)] = draw.choice(b"0123456789{}()[],:'<>|OuifLS \n\t\0-.e")

        def read(content: bytes = bytes(content)) -> str:
            path = root / "work" / "header.npy"
            path.write_bytes(content)
            return _read_whole(path, len(content))

        yield f"header {number}", read


def _read_whole(path: Path, size: int) -> str:
    """Refused in one line, or tokens that lie within the file and can all be read."""
    try:
        source = open_source(DataConfig(kind="tokens", path=str(path), context=8, placement="host"))
        source.train_batches(2, 0, 0, 2)
        n = len(source.train) + len(source.val)  # pyright: ignore[reportAttributeAccessIssue]
        return "" if n <= size else f"{n} tokens of {size} bytes"
    except DataError as error:
        return "" if "\n" not in str(error) else f"said {str(error)[:80]!r}"
    except BaseException as error:
        return f"{type(error).__name__}: {str(error)[:80]!r}"
