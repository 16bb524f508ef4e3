"""Tokens of a corpus: their split, their placement, and the sizes that are refused."""

import errno
import hashlib
import platform
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data import DataError, tokens
from data.batches import gather, window_starts
from data.config import DataConfig
from data.tokenizer import ByteTokenizer
from sources import ROOT, change_after, opened, refused, write


def whole(dataset: Any) -> str:
    return dataset.tokenizer.decode(np.concatenate([dataset.train, dataset.val]))


def split(n: int, **config: Any) -> int:
    return tokens.split(DataConfig(**config), "x", n, "characters")


def test_python_docs_are_the_default():
    dataset = opened()
    content = whole(dataset)
    assert dataset.sha256 == hashlib.sha256(content.encode()).hexdigest()
    assert dataset.name == f"python-docs (Python {platform.python_version()}, {len(content):,} characters)"
    assert (dataset.placement, dataset.vocab_size) == ("device", len(set(content)))
    assert opened(corpus="python-docs", tokenizer="byte").sha256 == dataset.sha256


def test_a_file_by_hand():
    config: dict[str, Any] = {"path": write("a.txt", "abcabcabc\r\n\n"), "context": 1, "val_fraction": 0.25}
    dataset = opened(**config)
    assert dataset.train.tolist() == [2, 3, 4, 2, 3, 4, 2, 3, 4] and dataset.val.tolist() == [1, 0, 0]
    assert dataset.train.dtype == np.uint8
    assert dataset.name == "a.txt (12 characters)"
    assert dataset.sha256 == hashlib.sha256(b"abcabcabc\r\n\n").hexdigest()
    dataset = opened(**config, tokenizer="byte")
    assert bytes(dataset.train) + bytes(dataset.val) == b"abcabcabc\r\n\n"
    assert dataset.name == "a.txt (12 bytes)"
    assert (dataset.vocab_size, dataset.tokenizer) == (256, ByteTokenizer())


def test_a_folder_says_how_many_files_were_read():
    for name in ("a.txt", "b.txt", "._a.txt"):
        write(f"books/{name}", "\ufeff" + "abc" * 9)
    for placement in ("device", "host"):
        dataset = opened(path="books", context=2, placement=placement)
        assert whole(dataset) == "abc" * 18
        assert dataset.name == "books (2 files, 54 characters)"
        assert dataset.details.endswith("; 1 hidden file left out")


# Placement


@pytest.mark.parametrize("tokenizer", ["char", "byte"])
@pytest.mark.parametrize("source", ["docs", "file"])
def test_both_placements_give_the_same_tokens_and_batches(tokenizer, source):
    content = "Thé quick brown 狐 jumps over the lazy dog.\n" * 50 + "".join(map(chr, range(0x4E00, 0x4F80)))
    where = {"path": write("a.txt", "\ufeff" + content)} if source == "file" else {}
    device, host = (opened(**where, tokenizer=tokenizer, placement=placement) for placement in ("device", "host"))
    assert source == "docs" or whole(device) == content  # a byte order mark is no text
    assert isinstance(host.train, np.memmap) and not isinstance(device.train, np.memmap)
    assert (device.placement, host.placement) == ("device", "host")
    assert device.train.dtype == (np.uint16 if (source, tokenizer) == ("file", "char") else np.uint8)
    for one, other in ((device.train, host.train), (device.val, host.val)):
        assert one.dtype == other.dtype and one.flags.c_contiguous and other.flags.c_contiguous
        np.testing.assert_array_equal(one, other)
        for array in (one, other):
            with pytest.raises(ValueError, match="read-only"):
                array[0] = 1
    starts = window_starts(len(device.train), 64, 16, seed=5, first_step=7, steps=3)
    np.testing.assert_array_equal(gather(device.train, starts, 64), gather(host.train, starts, 64))
    assert (device.tokenizer, device.sha256, device.name) == (host.tokenizer, host.sha256, host.name)


def test_auto_is_the_device_up_to_256_mib():
    for dtype, most in (("uint8", 2**28), ("uint16", 2**27)):
        for count, placement in ((most, "device"), (most + 1, "host")):
            assert tokens.placement_of(DataConfig(), count, np.dtype(dtype)) == placement
            for named in ("device", "host"):
                assert tokens.placement_of(DataConfig(placement=named), count, np.dtype(dtype)) == named


def test_a_byte_file_is_mapped_itself(cache):
    dataset = opened(path=write("a.txt", "ab" * 500), tokenizer="byte", placement="host")
    assert isinstance(dataset.train, np.memmap) and dataset.train.filename == Path("a.txt").absolute()
    assert not cache.exists()


def test_cached_tokens_are_made_once_and_mended(cache):
    config: dict[str, Any] = {"path": write("a.txt", "abcd" * 500), "placement": "host"}
    expected = opened(**config).train.tolist()
    (file,) = (cache / "tokens").iterdir()  # and no temporary file stays
    good, made = file.read_bytes(), file.stat().st_ino
    assert opened(**config).train.tolist() == expected and file.stat().st_ino == made
    bad = [b"", good[:-1], good[:20], b"x" * len(good)]
    for array in (np.array([None]), np.zeros(2000, np.int8), np.zeros(1999, np.uint8)):
        np.save("other.npy", array, allow_pickle=True)
        bad.append(Path("other.npy").read_bytes())
    for content in bad:
        file.write_bytes(content)
        assert opened(**config).train.tolist() == expected
        assert file.read_bytes() == good
    write("a.txt", "abdc" * 500)
    assert opened(**config).train.tolist() != expected
    assert len(list((cache / "tokens").iterdir())) == 2


def test_a_cache_that_cannot_be_written_says_so(cache, disk, wording):
    path = write("a.txt", "abcd" * 500)
    disk.refuse("fsync", errno.ENOSPC)
    wording(refused(path=path, placement="host"), volatile=r"[\d,]+(?= bytes)")
    assert list((cache / "tokens").iterdir()) == []
    (cache / "tokens").rmdir()
    cache.rmdir()
    write(cache, "a file where a folder should be")
    wording(refused(path=path, placement="host"))


@pytest.mark.parametrize(("tokenizer", "placement"), [("char", "device"), ("char", "host"), ("byte", "device")])
@pytest.mark.parametrize("change", ["ab" * 400, "ab" * 600, "ba" * 500, "zz" * 500])
def test_a_file_that_changes_while_it_is_read_is_refused(cache, monkeypatch, change, placement, tokenizer, wording):
    path = write("a.txt", "ab" * 500)
    change_after(monkeypatch, 1, change)
    message = refused(path=path, placement=placement, tokenizer=tokenizer)
    wording(message, "data.path")
    assert not cache.exists() or list((cache / "tokens").iterdir()) == []
    if len(change) != 1000:  # a byte file is mapped, and not read again
        write("a.txt", "ab" * 500)
        change_after(monkeypatch, 1, change)
        assert refused(path=path, placement="host", tokenizer="byte") == message


def test_opening_a_text_imports_neither_jax_nor_pooch():
    program = (
        "import sys; from data.config import DataConfig; from data.source import open_source; import data.batches\n"
        "open_source(DataConfig()); print([m for m in ('jax', 'pooch', 'model', 'train') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True)
    assert run.stdout == "[]\n"


# Sizes


SPLITS = [(20, 0.1, 18), (100, 0.9, 10), (1000, 0.7, 300), (29, 0.1, 26), (100, 0.07, 93), (90, 1 / 3, 60)]


@pytest.mark.parametrize(("n", "fraction", "n_train"), [*SPLITS, (1_115_394, 0.1, 1_003_854)])
def test_the_split_is_where_the_written_fraction_says(n, fraction, n_train):
    """In floating point (1 - 0.9) * 100 is below 10 and 100 * 0.07 above 7. A token that the split cuts is held out."""
    assert split(n, val_fraction=fraction, context=1) == n_train


@pytest.mark.parametrize(
    ("content", "config", "numbers"),
    [
        ("", {}, []),
        ("\ufeff", {}, []),
        ("\ufeff", {"tokenizer": "byte"}, []),
        ("é" * 50, {}, ["45", "5", "0.1", "1", "65", "4", "641"]),
        ("é" * 50, {"tokenizer": "byte"}, ["90", "10", "0.1", "1", "65", "9", "641"]),
        ("abcdefg", {"context": 1}, ["6", "1", "0.1", "1", "2", "11"]),
        ("é" * 50, {"context": 2}, []),
    ],
)
def test_a_short_file_and_what_would_do(content, config, numbers, wording):
    refusal = refused(path=write("a.txt", content), **config)
    assert re.findall(r"\d[\d.]*", refusal) == numbers
    wording(refusal, "data.path")


@pytest.mark.parametrize("fraction", [0.001, 0.1, 0.3, 0.5, 0.9, 0.999, 1 / 3])
@pytest.mark.parametrize("context", [1, 7, 64])
def test_the_sizes_it_names_are_the_exact_limits(fraction, context):
    def refusal(n: int, context: int) -> str:
        try:
            split(n, val_fraction=fraction, context=context)
        except DataError as error:
            return str(error).replace(",", "")
        return ""

    smallest = int(refusal(3, context).split()[-2])
    assert refusal(smallest - 1, context) and not refusal(smallest, context)
    largest = int(refusal(smallest, 10**5).split("context here is ")[1].split(";")[0])
    assert refusal(smallest, largest + 1) and not refusal(smallest, largest)


def test_too_much(wording):
    with wording.raises(DataError):
        split(2**31 + 1)
    assert split(2**31, val_fraction=0.5) == 2**30
    points = [*range(1, 0xD800), *range(0xE000, 0xE000 + 65_537 - 0xD800 + 2)]
    path = write("a.txt", "x" + "".join(map(chr, points)))
    wording(refused(path=path), "data.path")
    assert opened(path=path, tokenizer="byte").vocab_size == 256
