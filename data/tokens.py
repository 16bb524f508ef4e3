"""Ready-made files of token ids: .npy, or raw .bin with a JSON header beside it."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .config import DataConfig
from .corpus import Mapped, find, reason
from .errors import DataError
from .files import json_of
from .text import Windows, mapped, placed, split

_CHUNK = 2**22
_DTYPES = ("uint8", "uint16", "uint32")
_MOST_IDS = 2**31
_MOST_HEADER = 2**16  # bytes


@dataclass(frozen=True, eq=False)
class TokenFile(Windows):
    """Ids of which nobody says what text they stand for."""

    tokenizer: None = None


def open_tokens(config: DataConfig) -> TokenFile:
    """Tokens of `data.path`, an .npy of one axis, or FILE.bin beside FILE.json, `{"dtype": "uint16", "vocab_size": V}`.

    The vocabulary of an .npy is its largest id + 1. Raises DataError.
    """
    assert config.path is not None
    corpus = find(config)
    label, path = corpus.label, corpus.path
    assert path is not None
    tokens, vocab_size = _binary(path, label) if path.suffix == ".bin" else _npy(path, label)
    n_train = split(config, label, len(tokens), "tokens")
    digest, largest = hashlib.sha256(), 0
    for start in range(0, len(tokens), _CHUNK):
        part = np.ascontiguousarray(tokens[start : start + _CHUNK])
        if part.min() < 0:
            raise DataError(f"{label} has a negative id, {part.min()}")
        digest.update(part.tobytes())
        largest = max(largest, int(part.max()))
    vocab_size = largest + 1 if vocab_size is None else vocab_size
    if largest >= vocab_size:
        raise DataError(f"{label} has the id {largest}, but its header says vocab_size {vocab_size}")
    if vocab_size > _MOST_IDS:
        raise DataError(f"{label} has the id {largest}, at most {_MOST_IDS - 1:,} fits an int32")
    placement = placed(config, tokens.nbytes)
    behind = Mapped.of(label, path) if placement == "host" else None
    if placement == "device":
        tokens = np.array(tokens, tokens.dtype.newbyteorder("="))  # a device takes no other order of bytes
        tokens.flags.writeable = False
    source = f"{config.path} ({tokens.dtype})"
    parts = (tokens[:n_train], tokens[n_train:], digest.hexdigest(), source, placement)
    return TokenFile(*parts, config.context, vocab_size, behind)


def _npy(path: Path, label: str) -> tuple[np.ndarray, None]:
    try:
        tokens = mapped(path)
    except (OSError, ValueError) as error:
        raise DataError(f"{label} is not an .npy file, nor a .bin ({reason(error)})") from None
    if tokens.ndim != 1 or tokens.dtype.kind not in "iu":
        raise DataError(f"{label}: expected whole numbers along one axis, got {tokens.dtype} {list(tokens.shape)}")
    if not tokens.size:
        raise DataError(f"{label} is empty")
    return tokens, None


def _binary(path: Path, label: str) -> tuple[np.ndarray, int]:
    beside = path.with_suffix(".json")
    wanted = f'expected {{"dtype": "uint16" or "uint32", "vocab_size": V}} in {str(beside)!r}'
    try:
        header = json_of(beside, _MOST_HEADER)
        dtype, vocab_size = header["dtype"], header["vocab_size"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{label}: {wanted} ({reason(error)})") from None
    if dtype not in _DTYPES or type(vocab_size) is not int or vocab_size < 1:
        raise DataError(f"{label}: {wanted}, got dtype {dtype!r}, vocab_size {vocab_size!r}")
    size, item = path.stat().st_size, np.dtype(dtype).itemsize
    if not size or size % item:
        raise DataError(f"{label} has {size:,} bytes, expected a multiple of {item} ({dtype}), more than none")
    return np.memmap(path, np.dtype(dtype).newbyteorder("<"), "r"), vocab_size
