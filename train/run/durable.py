"""Down to the disk: what has been synced here survives a power cut, as far as the disk tells the truth."""

import os
from pathlib import Path


def sync_file(path: Path) -> None:
    """Returns when the content of a file is on the disk. Raises OSError."""
    _sync(path, os.O_RDONLY)


def sync_folder(path: Path) -> None:
    """Returns when the names in a folder are on the disk: made, renamed, removed. Raises OSError."""
    if os.name != "nt":  # where a folder cannot be opened, and its names are journalled
        _sync(path, os.O_RDONLY | os.O_DIRECTORY)


def sync_tree(folder: Path) -> None:
    """Returns when all that is below a folder is on the disk, and its own names. Raises OSError."""
    for entry in os.scandir(folder):
        if entry.is_dir(follow_symlinks=False):
            sync_tree(Path(entry.path))
        elif entry.is_file(follow_symlinks=False):
            sync_file(Path(entry.path))
    sync_folder(folder)


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags | getattr(os, "O_CLOEXEC", 0))
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
