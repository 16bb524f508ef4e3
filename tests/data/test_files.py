"""Files that somebody else may have written: what is read of them, and in how much memory."""

import os
import time
import tracemalloc

import pytest

from data.files import content_of, json_of
from sources import opened, refused, write


def test_only_a_regular_file_of_an_agreed_size_is_read(tmp_path, monkeypatch, wording):
    write("a", "12345")
    assert content_of("a") == content_of("a", 5) == b"12345"
    with wording.raises(ValueError):
        content_of("a", 4)
    os.mkfifo("pipe")
    for other in ("pipe", tmp_path, "/dev/zero"):
        with wording.raises(ValueError):
            content_of(other)
    with pytest.raises(FileNotFoundError):
        content_of("b")
    regular = os.stat(__file__)
    monkeypatch.setattr("os.stat", lambda *_, **__: regular)  # what it was when it was looked at
    with wording.raises(ValueError):
        content_of("pipe")


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "9" * 5000, "\ufeff{}", '{"a": \0}'])
def test_what_is_no_json_is_a_value_error(tmp_path, text):
    write("a.json", text)
    with pytest.raises(ValueError):
        json_of(tmp_path / "a.json")


def test_a_text_is_read_in_bounded_memory():
    """Links to one file, 24 MB of text; the device's tokens are all in memory, those of the host are mapped."""
    write("books/a.txt", "the quick brown fox jumps over the lazy dog\n" * 50_000)
    for link in range(10):
        os.symlink("a.txt", f"books/b{link:02}.txt")
    for placement, most in (("host", 10e6), ("device", 34e6)):
        tracemalloc.start()
        source = opened(path="books", tokenizer="byte", placement=placement)
        source.train_batches(4, 0, 0, 3)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert source.details.startswith("tokens 21,780,000 + ") and peak < most


def test_a_sparse_text_of_terabytes_is_refused_at_once(wording):
    write("a.txt", "")
    os.truncate("a.txt", 2**42)
    began = time.monotonic()
    wording(refused(path="a.txt"), "data.path")
    assert time.monotonic() - began < 5
