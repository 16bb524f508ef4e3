"""Headers of token files (.npy) that were made or changed to break their reader."""

import random
import struct
from collections.abc import Iterator
from pathlib import Path

from data.config import DataConfig
from data.errors import DataError
from data.open import open_source
from scripts.torture.audit import Trial


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


def headers(root: Path, draw: random.Random, trials: int) -> Iterator[Trial]:
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
