"""Files that somebody else may have written: what is read of them, and in how much memory."""

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from data import DataError
from data.config import DataConfig
from data.files import content_of, json_of
from data.source import open_source

ROOT = Path(__file__).parents[2]


def refused(**config) -> str:
    with pytest.raises(DataError) as error:
        open_source(DataConfig(**config))
    assert "\n" not in str(error.value)
    return str(error.value)


def test_only_a_regular_file_of_an_agreed_size_is_read(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"12345")
    assert content_of(path) == content_of(path, 5) == b"12345"
    with pytest.raises(ValueError, match="^expected at most 4 bytes$"):
        content_of(path, 4)
    os.mkfifo(tmp_path / "pipe")
    for other, kind in ((tmp_path / "pipe", "a pipe"), (tmp_path, "a folder"), ("/dev/zero", "a device")):
        with pytest.raises(ValueError, match=f"^expected a file, got {kind}$"):
            content_of(other)
    with pytest.raises(FileNotFoundError):
        content_of(tmp_path / "b")


def test_a_pipe_that_took_the_place_of_a_file_is_found_out(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe")
    regular = os.stat(__file__)
    monkeypatch.setattr("data.files.os.stat", lambda path: regular)  # what it was when it was looked at
    with pytest.raises(ValueError, match="^expected a file, got a pipe$"):
        content_of(tmp_path / "pipe")


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "9" * 5000, "\ufeff{}", '{"a": \0}'])
def test_what_is_no_json_is_a_value_error(tmp_path, text):
    (tmp_path / "a.json").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError):
        json_of(tmp_path / "a.json")


def test_a_file_that_changes_under_its_map_is_not_read_on(tmp_path):
    """To read what was cut off would end the process."""
    path = tmp_path / "a.npy"
    np.save(path, np.arange(4000, dtype=np.uint16) % 7)
    source = open_source(DataConfig(kind="tokens", path=str(path), context=8, placement="host"))
    before = source.train_batches(4, 0, 0, 3)
    np.testing.assert_array_equal(source.train_batches(4, 0, 0, 3), before)
    os.truncate(path, 200)
    for ask in (lambda: source.train_batches(4, 0, 0, 3), lambda: source.heldout_batches(4, 1)):
        with pytest.raises(DataError, match=r"^data.path: '.*a.npy' changed while it was in use; start again when"):
            ask()
    path.unlink()  # a new file is no harm to a map of the old one
    np.save(path, np.arange(9))


@pytest.mark.parametrize("kind", ["replaced", "removed"])
def test_a_file_that_was_replaced_stays_as_it_was_in_the_map(tmp_path, kind):
    path = tmp_path / "a.npy"
    np.save(path, np.arange(4000, dtype=np.uint16) % 7)
    source = open_source(DataConfig(kind="tokens", path=str(path), context=8, placement="host"))
    before = source.train_batches(4, 0, 0, 3)
    path.unlink()
    if kind == "replaced":
        np.save(path, np.arange(9))
    np.testing.assert_array_equal(source.train_batches(4, 0, 0, 3), before)


MEASURE = """
import resource, sys
from data.config import DataConfig
from data.source import open_source
from data import DataError
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    source = open_source(DataConfig(**eval(sys.argv[1])))
    source.train_batches(4, 0, 0, 3)
    message = source.details
except DataError as error:
    message = str(error)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, message)
"""


def grown(**config) -> tuple[int, str]:
    """(kilobytes by which a fresh process grew when it opened this data, what it message)."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    line = [sys.executable, "-c", MEASURE, repr(config)]
    done = subprocess.run(line, env=environment, capture_output=True, text=True, check=True, timeout=300)
    kilobytes, _, message = done.stdout.partition(" ")
    return int(kilobytes), message


def test_a_text_larger_than_its_memory_is_read_in_bounded_memory(tmp_path, monkeypatch):
    """As many links to one file: 200 MB of text, of which the map is a tenth of what one copy would be."""
    (tmp_path / "a.txt").write_text("the quick brown fox jumps over the lazy dog\n" * 100_000, encoding="utf-8")
    for link in range(45):
        (tmp_path / f"b{link:02}.txt").symlink_to("a.txt")
    monkeypatch.setenv("DELTAFLOW_CACHE", str(tmp_path / "cache"))
    grew, message = grown(path=str(tmp_path), tokenizer="byte", placement="host")
    assert "tokens 182,160,000 + " in message
    assert grew < 100_000  # kilobytes


def test_a_sparse_file_of_terabytes_is_refused_at_once(tmp_path):
    with open(tmp_path / "a.txt", "wb") as file:
        file.truncate(2**42)
    began = time.monotonic()
    message = refused(path=str(tmp_path / "a.txt"))
    assert "is not text: byte 0x00 at offset 0" in message and time.monotonic() - began < 5
    os.rename(tmp_path / "a.txt", tmp_path / "a.bin")
    (tmp_path / "a.json").write_text('{"dtype": "uint8", "vocab_size": 256}', encoding="utf-8")
    message = refused(kind="tokens", path=str(tmp_path / "a.bin"))
    assert "has 4,398,046,511,104 tokens, at most 2,147,483,648 have positions" in message


def test_a_pipe_beside_token_ids_is_not_waited_for(tmp_path):
    (tmp_path / "a.bin").write_bytes(b"12345678")
    os.mkfifo(tmp_path / "a.json")
    assert "(expected a file, got a pipe)" in refused(kind="tokens", path=str(tmp_path / "a.bin"))
