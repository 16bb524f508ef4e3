"""Files of data, the sources that open them, and the one line of a refusal."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data import DataError
from data.config import DataConfig
from data.source import open_source

ROOT = Path(__file__).parents[1]
SHAKESPEARE = ROOT / "shared" / "data" / "tinyshakespeare.txt"
PROSE = "Thé quick brown 狐 jumps over the lazy dog, doesn't it?  A quick dog over there jumps!\r\n\n" * 40


def write(path: str | Path, content: str | bytes = "abc") -> str:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def change_after(monkeypatch: pytest.MonkeyPatch, reading: int, content: str | bytes) -> None:
    """a.txt has another content after it was read for the n-th time, once in each pass over a corpus."""
    real, readings = open, itertools.count(1)

    def changing(path: Any, *rest: Any, **more: Any) -> Any:
        file = real(path, *rest, **more)
        if Path(str(path)).name == "a.txt" and next(readings) == reading:
            close = file.close
            file.close = lambda: (close(), write(path, content))
        return file

    monkeypatch.setattr("builtins.open", changing)


def opened(**config: Any) -> Any:
    return open_source(DataConfig(**config))


def refused(action: Callable[[], Any] | None = None, **config: Any) -> str:
    """The message of the DataError of an action, by default opening a config's data: one line without causes."""
    with pytest.raises(DataError) as error:
        action() if action else opened(**config).train_batches(1, 0, 0, 1)
    assert "\n" not in str(error.value)
    assert error.value.__suppress_context__ or error.value.__context__ is None
    return str(error.value)
