"""What a checkpoint says of itself, and whether that is still so.

manifest.json holds every file below the checkpoint with its size and sha256, every array with its dtype, shape and
sha256, what the run depends on (train/store/provenance.py), and a sha256 of all that. Hashes find what a disk, a copy
or an editor did; they do not find who means harm and writes the hashes anew. Nothing here or in Orbax's arrays can
run code.
"""

import hashlib
import json
import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

NAME = "manifest.json"
FORMAT = 1
MAX_BYTES = 2**26  # of manifest.json; a file of this project has some thousand


class Damaged(Exception):
    """A checkpoint that is not what was saved. The text says why, in a few words."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")


class FileSum(_Part):
    """A file's size and the sha256 of its content, in hex."""

    bytes: int
    sha256: str


class ArraySum(_Part):
    """An array's dtype and shape, and the sha256 of its entries in C order, in hex."""

    dtype: str
    shape: list[int]
    sha256: str

    def __str__(self) -> str:
        return f"{self.dtype} {self.shape}"


class Manifest(_Part):
    """The content of manifest.json."""

    format: int
    step: int = Field(ge=0)
    files: dict[str, FileSum]  # by path below the checkpoint, with / between
    arrays: dict[str, ArraySum]  # by path in the state
    origin: dict[str, Any]  # what it was made with: train/store/provenance.py
    loss_val: float | None  # held-out loss at this step, None where it was not measured or is not finite


def array_sums(state: Any) -> dict[str, ArraySum]:
    """The arrays of a pytree by their path, such as params/blocks/attn/q/kernel and optimizer/0/mu/embed."""
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return dict(sorted((state_path(keys), _array_sum(leaf)) for keys, leaf in leaves))


def state_path(keys: tuple) -> str:
    """The path of a leaf, the same for a named tuple, and for the mapping that Orbax makes of it."""
    return "/".join(str(getattr(key, "name", getattr(key, "key", getattr(key, "idx", key)))) for key in keys)


def _array_sum(leaf: Any) -> ArraySum:
    array = np.asarray(leaf)
    digest = hashlib.sha256(np.ascontiguousarray(array).view(np.uint8).data if array.size else b"")
    return ArraySum(dtype=array.dtype.name, shape=list(array.shape), sha256=digest.hexdigest())


def write(folder: Path, step: int, arrays: dict[str, ArraySum], origin: Mapping[str, Any], loss: float | None) -> None:
    """Writes the manifest of all files that are in the folder now. Raises OSError, Damaged (a link, a device)."""
    manifest = Manifest(
        format=FORMAT,
        step=step,
        files={name: _file_sum(path) for name, path in _files(folder)},
        arrays=arrays,
        origin=dict(origin),
        loss_val=loss,
    ).model_dump()
    text = json.dumps(manifest | {"sha256": _own_sum(manifest)}, indent=1, allow_nan=False)
    (folder / NAME).write_text(text, encoding="utf-8")  # no line break at the end, so that no byte of it is idle


def read(folder: Path) -> Manifest:
    """The manifest, if it is whole; the files are not looked at. Raises Damaged."""
    try:
        if not stat.S_ISDIR(os.lstat(folder).st_mode):
            raise Damaged("it is no folder of its own")
        text = _content(folder / NAME, MAX_BYTES)
    except FileNotFoundError:
        raise Damaged(f"it has no {NAME} (older versions wrote none)") from None
    except OSError as error:
        raise Damaged(f"{NAME}: cannot be read: {error.strerror}") from None
    try:
        loaded = json.loads(text)
        claimed = loaded.pop("sha256")
        if claimed != _own_sum(loaded):
            raise Damaged(f"{NAME}: its sha256 differs")
        if loaded["format"] != FORMAT:
            raise Damaged(f"{NAME}: expected format {FORMAT}, got {str(loaded['format'])[:20]}")
        return Manifest.model_validate(loaded)
    except ValidationError as error:
        where = ".".join(map(str, error.errors(include_url=False)[0]["loc"]))
        raise Damaged(f"{NAME}: {where[:100]} is not as expected") from None
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        raise Damaged(f"{NAME}: not the JSON that was written") from None


def verify(folder: Path, step: int) -> Manifest:
    """The manifest of a checkpoint whose files are all there and all as they were written. Raises Damaged.

    What begins with a dot and is not in the manifest is left alone: file systems and desktops put such things there.
    """
    manifest = read(folder)
    if manifest.step != step:
        raise Damaged(f"it was saved at step {manifest.step}")
    missing = dict(manifest.files)
    try:
        for name, path in _files(folder, manifest.files):
            wanted = missing.pop(name, None)
            if wanted is None:
                raise Damaged(f"{name}: was not saved with it")
            if path.lstat().st_size != wanted.bytes:
                raise Damaged(f"{name}: expected {wanted.bytes} bytes, got {path.lstat().st_size}")
            if _file_sum(path) != wanted:
                raise Damaged(f"{name}: its sha256 differs")
    except OSError as error:
        raise Damaged(f"{error.filename}: cannot be read: {error.strerror}") from None
    if missing:
        raise Damaged(f"{next(iter(missing))}: is missing")
    return manifest


def _own_sum(manifest: Mapping[str, Any]) -> str:
    text = json.dumps(manifest, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _files(folder: Path, known: Mapping[str, Any] | None = None, prefix: str = "") -> Iterator[tuple[str, Path]]:
    """Every file below the folder but the manifest; links and devices are refused (Damaged).

    known: what is expected; others that begin with a dot are then left out. None: everything.
    """
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        name = f"{prefix}{entry.name}"
        expected = known is None or any(f"{each}/".startswith(f"{name}/") for each in known)
        if name == NAME or not expected and entry.name.startswith("."):
            continue
        if entry.is_symlink():
            raise Damaged(f"{name}: is a link")
        if entry.is_dir(follow_symlinks=False):
            yield from _files(Path(entry.path), known, f"{name}/")
        elif entry.is_file(follow_symlinks=False):
            yield name, Path(entry.path)
        else:
            raise Damaged(f"{name}: is neither a file nor a folder")


def _file_sum(path: Path) -> FileSum:
    with _opened(path) as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return FileSum(bytes=file.tell(), sha256=digest)


def _content(path: Path, limit: int) -> bytes:
    with _opened(path) as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise Damaged(f"{path.name}: expected at most {limit} bytes")
    return content


def _opened(path: Path) -> Any:
    """Refuses a link in the place of the file, and a pipe, which would never answer. Raises OSError, Damaged."""
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    file = open(os.open(path, flags | getattr(os, "O_CLOEXEC", 0)), "rb", buffering=0)
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise Damaged(f"{path.name}: is no file")
    return file
