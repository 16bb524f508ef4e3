"""One safetensors file: named arrays, text metadata, and a SHA-256 of every byte.

The layout is that of https://github.com/huggingface/safetensors (format.md): the header's length in 8 bytes, little
endian; a JSON header with dtype, shape and offsets of each array, and a mapping of strings, `__metadata__`; then the
arrays without a gap. The last array, `sha256`, is the digest of all bytes before it. So one hash covers the length, the
header and the arrays, the file is written in one pass, and any reader of safetensors can open it.

The digest detects what a disk, a copy or an editor did; it is no signature. Nothing here can run code.
"""

import hashlib
import json
import math
import os
import stat
from collections.abc import Mapping
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes  # noqa: F401  (makes np.dtype("bfloat16") known)
import numpy as np

DIGEST = "sha256"
MAX_HEADER = 2**26  # bytes; a header of this project has some ten thousand
_CHUNK = 2**20
CODES = {
    "bool": "BOOL",
    "uint8": "U8",
    "int8": "I8",
    "uint16": "U16",
    "int16": "I16",
    "float16": "F16",
    "bfloat16": "BF16",
    "uint32": "U32",
    "int32": "I32",
    "float32": "F32",
    "uint64": "U64",
    "int64": "I64",
    "float64": "F64",
    "complex64": "C64",
}
_DTYPES = {code: np.dtype(name) for name, code in CODES.items()}


class Damaged(Exception):
    """A file that is not what was written. The text gives the reason in a few words."""


def write(file: BinaryIO, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str], sealed: bool = True) -> None:
    """Writes all of a file, with its digest if `sealed`; an array's dtype is one of `CODES`. Raises OSError."""
    digest_size = hashlib.sha256().digest_size
    ordered = sorted(arrays.items(), key=lambda item: (-item[1].dtype.itemsize, item[0]))  # each one aligned
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name, array in ordered:
        header[name] = _entry(CODES[array.dtype.name], list(array.shape), end, end := end + array.nbytes)
    if sealed:
        header[DIGEST] = _entry("U8", [digest_size], end, end + digest_size)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    digest = hashlib.sha256()
    contents = (np.ascontiguousarray(array).reshape(-1).view(np.uint8).data for _, array in ordered)
    for part in (len(text).to_bytes(8, "little"), text, *contents):
        file.write(part)
        digest.update(part)
    if sealed:
        file.write(digest.digest())


def _entry(code: str, shape: list[int], start: int, end: int) -> dict[str, Any]:
    return {"dtype": code, "shape": shape, "data_offsets": [start, end]}


def read(path: Path) -> tuple[dict[str, str], dict[str, np.ndarray]]:
    """Returns metadata and arrays of a file whose digest matches. Raises Damaged."""
    header, content = _verified(path, keep=True)
    metadata = header.pop("__metadata__", {})
    header.pop(DIGEST, None)
    arrays = {}
    try:
        for name, entry in header.items():
            dtype, shape, (start, end) = _DTYPES[entry["dtype"]], entry["shape"], entry["data_offsets"]
            if not 0 <= start <= end <= len(content) or math.prod(shape) * dtype.itemsize != end - start:
                raise ValueError(name)
            arrays[name] = np.frombuffer(content, dtype, math.prod(shape), start).reshape(shape)
    except (ValueError, TypeError, LookupError):
        raise Damaged("its header describes no arrays") from None
    return metadata, arrays


def read_metadata(path: Path) -> dict[str, str]:
    """Returns the metadata of a file whose digest matches, without keeping its arrays in memory. Raises Damaged."""
    return _verified(path, keep=False)[0].get("__metadata__", {})


def _verified(path: Path, keep: bool) -> tuple[dict[str, Any], np.ndarray]:
    """Returns the header, and the bytes behind it if `keep`, of a file whose digest matches. Raises Damaged."""
    try:
        with _opened(path) as file:
            size = os.fstat(file.fileno()).st_size
            prefix = file.read(8)
            length = int.from_bytes(prefix, "little")
            if size - 8 < length or length > MAX_HEADER:
                raise Damaged(f"a header of {length:,} bytes does not fit into its {size:,}")
            text = file.read(length)
            digest = hashlib.sha256(prefix + text)
            left = size - 8 - length - digest.digest_size
            content = np.empty(max(left, 0) if keep else _CHUNK, np.uint8)
            for start in range(0, left, _CHUNK):
                part = content[start if keep else 0 :][: min(_CHUNK, left - start)].data
                if file.readinto(part) < len(part):
                    raise Damaged("it became shorter while it was read")
                digest.update(part)
            if file.read(digest.digest_size + 1) != digest.digest():
                raise Damaged("its sha256 differs")
    except OSError as error:
        raise Damaged(f"it cannot be read: {error.strerror or error}") from None
    try:
        header = json.loads(text)
        metadata = header.get("__metadata__", {})
        if not all(isinstance(value, str) for value in metadata.values()):
            raise ValueError("__metadata__")
    except (ValueError, AttributeError, RecursionError):
        raise Damaged("its header is not the JSON that was written") from None
    return header, content


def _opened(path: Path) -> BufferedReader:
    """Opens a regular file: no link, and no pipe, which would never answer. Raises OSError, Damaged."""
    if stat.S_ISLNK(os.lstat(path).st_mode):
        raise Damaged("it is a link")
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    file = open(os.open(path, flags | getattr(os, "O_CLOEXEC", 0)), "rb")
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise Damaged("it is no file")
    return file
