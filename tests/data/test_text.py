import hashlib
import os
import platform
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data import corpus, text
from data.batches import gather, window_starts
from data.config import DataConfig
from data.text import DataError, Dataset, open_dataset
from data.tokenizer import ByteTokenizer

SHAKESPEARE = Path(__file__).parents[2] / "shared" / "data" / "tinyshakespeare.txt"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """No test reads or writes the user's cache, or goes through a proxy."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("DELTAFLOW_CACHE", str(folder))
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.delenv("DELTAFLOW_SHAKESPEARE_URL", raising=False)
    return folder


def write(path: Path, content: str | bytes) -> str:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def opened(**config: Any) -> Dataset:
    return open_dataset(DataConfig(**config))


def split(n: int, **config: Any) -> int:
    return text.split(DataConfig(**config), "x", n, "characters")


def error_of(**config: Any) -> str:
    with pytest.raises(DataError) as error:
        opened(**config)
    assert "\n" not in str(error.value)
    assert error.value.__suppress_context__ or error.value.__context__ is None
    return str(error.value)


# What a corpus becomes


def test_python_docs_are_the_default():
    dataset = opened()
    from pydoc_data.topics import topics

    paragraphs = "\n\n".join(topics[key] for key in sorted(topics)).split("\n\n")
    content = "\n\n".join(text for index, text in enumerate(paragraphs) if text not in paragraphs[:index])
    assert len(content) < 0.9 * len("\n\n".join(paragraphs))  # or nothing was there to leave out
    assert dataset.tokenizer.decode(dataset.train) + dataset.tokenizer.decode(dataset.val) == content
    assert dataset.sha256 == hashlib.sha256(content.encode()).hexdigest()
    assert dataset.source == f"python-docs (Python {platform.python_version()}, {len(content):,} characters)"
    assert dataset.placement == "device"
    assert dataset.vocab_size == len(set(content))
    assert opened(corpus="python-docs", tokenizer="byte").sha256 == dataset.sha256


def test_python_docs_are_joined_in_sorted_order(monkeypatch):
    from pydoc_data import topics

    monkeypatch.setattr(topics, "topics", {"b": "two", "c": "three", "a": "one"})
    dataset = opened(context=1)
    assert dataset.tokenizer.decode([*dataset.train, *dataset.val]) == "one\n\ntwo\n\nthree"


def test_a_file_by_hand(tmp_path):
    path = write(tmp_path / "a.txt", "abcabcabc\r\n\n")
    dataset = opened(path=path, context=1, val_fraction=0.25)
    assert dataset.train.tolist() == [2, 3, 4, 2, 3, 4, 2, 3, 4]
    assert dataset.val.tolist() == [1, 0, 0]
    assert dataset.train.dtype == np.uint8
    assert dataset.source == f"{path} (12 characters)"
    assert dataset.sha256 == hashlib.sha256(b"abcabcabc\r\n\n").hexdigest()
    dataset = opened(path=path, context=1, val_fraction=0.25, tokenizer="byte")
    assert bytes(dataset.train) + bytes(dataset.val) == b"abcabcabc\r\n\n"
    assert dataset.source == f"{path} (12 bytes)"
    assert (dataset.vocab_size, dataset.tokenizer) == (256, ByteTokenizer())


@pytest.mark.parametrize("tokenizer", ["char", "byte"])
@pytest.mark.parametrize("placement", ["device", "host"])
def test_tokens_cannot_be_written_to(tmp_path, tokenizer, placement):
    path = write(tmp_path / "a.txt", "abc" * 9)
    dataset = opened(path=path, context=1, tokenizer=tokenizer, placement=placement)
    for tokens in (dataset.train, dataset.val):
        assert tokens.flags.c_contiguous
        with pytest.raises(ValueError, match="read-only"):
            tokens[0] = 1


@pytest.mark.parametrize(
    ("n", "fraction", "n_train"),
    [
        (20, 0.1, 18),
        (100, 0.9, 10),
        (1000, 0.7, 300),
        (29, 0.1, 26),
        (100, 0.07, 93),
        (1_115_394, 0.1, 1_003_854),
        (90, 1 / 3, 60),
    ],
)
def test_the_split_is_where_the_written_fraction_says(n, fraction, n_train):
    """In floating point (1 - 0.9) * 100 is below 10 and 100 * 0.07 above 7. A token that the split cuts is held out."""
    assert split(n, val_fraction=fraction, context=1) == n_train


def test_paths_are_relative_to_the_current_folder_or_home(tmp_path, monkeypatch):
    write(tmp_path / "a.txt", "abc" * 9)
    monkeypatch.chdir(tmp_path)
    assert opened(path="a.txt", context=1).source == "a.txt (27 characters)"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert opened(path="~/a.txt", context=1).vocab_size == 3


@pytest.mark.parametrize("tokenizer", ["char", "byte"])
@pytest.mark.parametrize("placement", ["device", "host"])
def test_a_byte_order_mark_is_no_text(tmp_path, tokenizer, placement):
    config = {"context": 1, "tokenizer": tokenizer, "placement": placement}
    with_mark = opened(path=write(tmp_path / "b.txt", b"\xef\xbb\xbf" + b"a\xc3\xa9" * 9), **config)
    without = opened(path=write(tmp_path / "c.txt", b"a\xc3\xa9" * 9), **config)
    np.testing.assert_array_equal(with_mark.train, without.train)
    np.testing.assert_array_equal(with_mark.val, without.val)


@pytest.mark.parametrize("chunk", [1, 2, 3, 5])
def test_characters_may_straddle_chunks(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(corpus, "_CHUNK", chunk)
    content = "\ufeffaé\r\n語😀\ufeff" * 5
    path = write(tmp_path / "a.txt", content)
    for tokenizer in ("char", "byte"):
        for placement in ("device", "host"):
            dataset = opened(path=path, context=1, tokenizer=tokenizer, placement=placement)
            whole = dataset.tokenizer.decode(np.concatenate([dataset.train, dataset.val]))
            assert whole == content[1:]  # only the first mark is one
    write(tmp_path / "a.txt", "aé\n\n語".encode() + b"\n\xe8\xaax")
    assert "byte 0xE8 at offset 9, line 4;" in error_of(path=path)


@pytest.mark.skipif(not SHAKESPEARE.exists(), reason="Tiny Shakespeare is not on this machine")
def test_tiny_shakespeare_has_its_known_figures():
    dataset = opened(path=str(SHAKESPEARE))
    assert (dataset.vocab_size, len(dataset.train), len(dataset.val)) == (65, 1_003_854, 111_540)
    assert dataset.sha256 == corpus._SHAKESPEARE_SHA256
    assert dataset.tokenizer.decode(dataset.train[:13]) == "First Citizen"


# Placement


@pytest.mark.parametrize("tokenizer", ["char", "byte"])
@pytest.mark.parametrize("source", ["docs", "file"])
def test_both_placements_give_the_same_tokens_and_batches(tmp_path, tokenizer, source):
    content = "Thé quick brown 狐 jumps over the lazy dog.\n" * 50 + "".join(map(chr, range(0x4E00, 0x4F80)))
    where = {"path": write(tmp_path / "a.txt", content)} if source == "file" else {}
    device, host = (opened(**where, tokenizer=tokenizer, placement=placement) for placement in ("device", "host"))
    assert isinstance(host.train, np.memmap) and not isinstance(device.train, np.memmap)
    assert (device.placement, host.placement) == ("device", "host")
    assert device.train.dtype == (np.uint16 if (source, tokenizer) == ("file", "char") else np.uint8)
    for one, other in ((device.train, host.train), (device.val, host.val)):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)
    starts = window_starts(len(device.train), 64, 16, seed=5, first_step=7, steps=3)
    np.testing.assert_array_equal(gather(device.train, starts, 64), gather(host.train, starts, 64))
    assert (device.tokenizer, device.sha256, device.source) == (host.tokenizer, host.sha256, host.source)


def test_auto_is_the_device_up_to_a_size(tmp_path, monkeypatch):
    path = write(tmp_path / "a.txt", "ab" * 500)
    assert text.DEVICE_BYTES == 256 * 2**20
    monkeypatch.setattr(text, "DEVICE_BYTES", 1000)
    assert opened(path=path).placement == "device"
    monkeypatch.setattr(text, "DEVICE_BYTES", 999)
    assert opened(path=path).placement == "host"
    wide = write(tmp_path / "wide.txt", "".join(map(chr, range(0x100, 0x100 + 300))))  # two bytes a token
    assert opened(path=wide, context=9).placement == "device"
    monkeypatch.setattr(text, "DEVICE_BYTES", 599)
    assert opened(path=wide, context=9).placement == "host"


def test_a_byte_file_is_mapped_itself(tmp_path, cache):
    path = write(tmp_path / "a.txt", "ab" * 500)
    dataset = opened(path=path, tokenizer="byte", placement="host")
    assert isinstance(dataset.train, np.memmap) and dataset.train.filename == Path(path)
    assert not cache.exists()


def test_cached_tokens_are_made_once_and_mended(tmp_path, cache, monkeypatch):
    config: dict[str, Any] = {"path": write(tmp_path / "a.txt", "abcd" * 500), "placement": "host"}
    wanted = opened(**config).train.tolist()
    (file,) = (cache / "tokens").iterdir()  # and no temporary file stays
    good = file.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(text, "_write", lambda *_: pytest.fail("encoded again"))
        assert opened(**config).train.tolist() == wanted
    bad = [b"", good[:-1], good[:20], b"x" * len(good)]
    for array in (np.array([None]), np.zeros(2000, np.int8), np.zeros(1999, np.uint8)):
        np.save(tmp_path / "other.npy", array, allow_pickle=True)
        bad.append((tmp_path / "other.npy").read_bytes())
    for content in bad:
        file.write_bytes(content)
        assert opened(**config).train.tolist() == wanted
        assert file.read_bytes() == good
    write(tmp_path / "a.txt", "abdc" * 500)
    assert opened(**config).train.tolist() != wanted
    assert len(list((cache / "tokens").iterdir())) == 2


def test_a_cache_that_cannot_be_written_says_so(tmp_path, cache):
    write(cache, "a file where a folder should be")
    path = write(tmp_path / "a.txt", "abcd" * 500)
    assert error_of(path=path, placement="host") == (
        f"the token cache {str(cache / 'tokens')!r} can't be used (Not a directory); "
        "set DELTAFLOW_CACHE to a folder with room, or data.placement: device"
    )


def test_a_full_disk_leaves_no_part_of_the_tokens(tmp_path, cache, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    path = write(tmp_path / "a.txt", "abcd" * 500)
    assert "can't be used (No space left on device)" in error_of(path=path, placement="host")
    assert list((cache / "tokens").iterdir()) == []


@pytest.mark.parametrize("placement", ["device", "host"])
@pytest.mark.parametrize("change", ["ab" * 400, "ab" * 600, "ba" * 500, "zz" * 500])
def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path, cache, monkeypatch, change, placement):
    path = write(tmp_path / "a.txt", "ab" * 500)
    split = text.split
    monkeypatch.setattr(text, "split", lambda *args: write(tmp_path / "a.txt", change) and split(*args))
    assert error_of(path=path, placement=placement) == (
        f"data.path: {path!r} changed while it was read; start again when it is complete"
    )
    assert not cache.exists() or list((cache / "tokens").iterdir()) == []


def test_opening_a_text_imports_neither_jax_nor_pooch(tmp_path):
    program = (
        "import sys; from data.config import DataConfig; from data.text import open_dataset; import data.batches\n"
        "open_dataset(DataConfig()); print([m for m in ('jax', 'pooch', 'model', 'train') if m in sys.modules])"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=Path(__file__).parents[2], check=True
    )
    assert run.stdout == "[]\n"


# Files that can't be used


def test_a_missing_file_and_the_nearest(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    here = f"(the current folder is {str(tmp_path)!r})"
    assert error_of(path="corpus.txt") == f"data.path: 'corpus.txt' does not exist {here}"
    write(tmp_path / "corpora.txt", "abc")
    assert error_of(path="corpus.txt") == (
        f"data.path: 'corpus.txt' does not exist {here}; did you mean 'corpora.txt'?"
    )
    assert error_of(path="no/corpus.txt") == (
        f"data.path: 'no/corpus.txt' does not exist {here}; nor does its folder 'no'"
    )
    assert error_of(path="corpora.txt/x") == (
        f"data.path: 'corpora.txt/x' does not exist {here}; nor does its folder 'corpora.txt'"
    )
    assert error_of(path="a\nb").startswith("data.path: 'a\\nb' does not exist ")


def test_what_is_not_a_regular_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")  # opening it would wait for a writer
    with socket.socket(socket.AF_UNIX) as server:
        old = os.getcwd()
        os.chdir(tmp_path)  # a socket's path must be short
        try:
            server.bind("sock")
        finally:
            os.chdir(old)
        kinds = {
            "pipe": "a pipe",
            "sock": "a socket",
            "/dev/zero": "a device",
            "/dev/null": "a device",
        }
        for name, kind in kinds.items():
            path = str(tmp_path / name)
            assert error_of(path=path) == f"data.path: {path!r} is {kind}, expected a UTF-8 text file"


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("a\0b", "embedded null byte"),
        ("a" * 300, "File name too long"),
        ("loop", "Too many levels of symbolic links"),
        ("~no-such-user-here/a", "Could not determine home directory."),
    ],
)
def test_what_cannot_be_looked_up(tmp_path, monkeypatch, path, reason):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "loop").symlink_to("loop")
    assert error_of(path=path) == f"data.path: {path!r} can't be opened ({reason})"


def test_an_unreadable_file(tmp_path, monkeypatch):
    path = write(tmp_path / "a.txt", "abc" * 100)
    (tmp_path / "a.txt").chmod(0)
    if os.access(path, os.R_OK):  # root may read everything
        monkeypatch.setattr(
            corpus, "open", lambda *_: (_ for _ in ()).throw(PermissionError(13, "Permission denied")), raising=False
        )
    assert error_of(path=path) == f"data.path: {path!r} can't be read (Permission denied)"


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="needs a file whose reading fails")
def test_a_read_that_fails():
    assert error_of(path="/proc/self/mem") == "data.path: '/proc/self/mem' can't be read (Input/output error)"


@pytest.mark.parametrize("tokenizer", ["char", "byte"])
@pytest.mark.parametrize("content", [b"", b"\xef\xbb\xbf"])
def test_an_empty_file(tmp_path, content, tokenizer):
    path = write(tmp_path / "a.txt", content)
    assert error_of(path=path, tokenizer=tokenizer) == f"data.path: {path!r} is empty"


@pytest.mark.parametrize("tokenizer", ["char", "byte"])
@pytest.mark.parametrize(
    ("content", "byte", "offset", "line", "charset"),
    [
        ("one\ntwo é\n".encode("latin1") * 50, "0xE9", "8", 2, "LATIN1"),
        (b"a\n" * 2_000_000 + b"\xff", "0xFF", "4,000,000", "2,000,001", "LATIN1"),
        ("hello".encode("utf-16"), "0xFF", "0", 1, "UTF-16"),
        (b"x" * 1000 + b"\xe2\x82", "0xE2", "1,000", 1, "LATIN1"),  # cut inside a character
        (b"ok\n\xed\xa0\x80", "0xED", "3", 2, "LATIN1"),  # a surrogate
    ],
)
def test_a_file_that_is_not_utf8(tmp_path, content, byte, offset, line, charset, tokenizer):
    path = write(tmp_path / "a.txt", content)
    assert error_of(path=path, tokenizer=tokenizer) == (
        f"data.path: {path!r} is not UTF-8 text: byte {byte} at offset {offset}, line {line}; "
        f"convert it, for example with iconv -f {charset} -t UTF-8"
    )


def test_a_short_file_and_what_would_do(tmp_path):
    path = write(tmp_path / "a.txt", "é" * 50)
    assert error_of(path=path) == (
        f"data.path: {path!r} is too short: 45 characters to train on and 5 held out (data.val_fraction 0.1), each "
        "must be at least data.context + 1 = 65; the largest context here is 4, the smallest corpus for this context "
        "641 characters"
    )
    assert "90 bytes to train on and 10 held out" in error_of(path=path, tokenizer="byte")
    assert "; no context would do here, the smallest corpus for this context 11 characters" in error_of(
        path=write(tmp_path / "b.txt", "abcdefg"), context=1
    )
    assert error_of(context=10**6).startswith("data.corpus: python-docs is too short: ")


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
    largest = int(refusal(smallest, 10**5).split("context here is ")[1].split()[0])
    assert refusal(smallest, largest + 1) and not refusal(smallest, largest)


def test_too_many_tokens_for_their_positions():
    with pytest.raises(
        DataError, match=r"^x has 2,147,483,649 characters, at most 2,147,483,648 have positions that fit"
    ):
        split(2**31 + 1)
    assert split(2**31, val_fraction=0.5) == 2**30


def test_too_many_characters_for_a_vocabulary(tmp_path):
    points = [*range(1, 0xD800), *range(0xE000, 0xE000 + 65_537 - 0xD800 + 2)]
    path = write(tmp_path / "a.txt", "x" + "".join(map(chr, points)))
    assert error_of(path=path) == (
        f"data.path: {path!r} has 65,538 different characters, at most 65,536 can be tokens; set data.tokenizer: byte"
    )
    assert opened(path=path, tokenizer="byte").vocab_size == 256


def test_a_corpus_or_a_path_and_not_both():
    assert error_of(path="x", corpus="shakespeare") == (
        "data.path: give corpus or path, not both (corpus is 'shakespeare')"
    )


def test_a_python_without_its_docs(monkeypatch):
    monkeypatch.setitem(sys.modules, "pydoc_data", None)
    assert error_of() == (
        "data.corpus: python-docs is missing from this Python (it has no module pydoc_data.topics); "
        "set data.path to a UTF-8 text file"
    )


def test_bpe_without_its_package(tmp_path, cache, monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    assert error_of(path=write(tmp_path / "a.txt", "abc" * 99), tokenizer="bpe") == (
        "data.tokenizer: bpe needs tokenizers; install it with pip install tokenizers, or -e '.[bpe]'"
    )
    assert not cache.exists()


# Tiny Shakespeare, from a server of our own


@contextmanager
def served(body: bytes, status: int = 200, length: int | None = None):
    """The URL of a server, and the paths it was asked for."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(status)
            self.send_header("Content-Length", str(len(body) if length is None else length))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format, *args):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/input.txt", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


PLAY = b"First Citizen:\nBefore we proceed any further, hear me speak.\n\n" * 20


@pytest.fixture
def play(monkeypatch):
    """A short text in the place of Tiny Shakespeare."""
    monkeypatch.setattr(corpus, "_SHAKESPEARE_SHA256", hashlib.sha256(PLAY).hexdigest())
    return PLAY


def test_shakespeare_is_fetched_once(play, cache, monkeypatch, capfd):
    with served(play) as (url, asked):
        monkeypatch.setenv("DELTAFLOW_SHAKESPEARE_URL", url)
        first = opened(corpus="shakespeare")
        again = opened(corpus="shakespeare", tokenizer="byte", placement="host")
    assert asked == ["/input.txt"]
    assert first.source == f"shakespeare ({len(play):,} characters)"
    assert first.sha256 == again.sha256 == hashlib.sha256(play).hexdigest()
    assert bytes(again.train) + bytes(again.val) == play
    assert [file.name for file in cache.iterdir()] == ["tinyshakespeare.txt"]
    assert capfd.readouterr() == ("", "")


@pytest.mark.skipif(not SHAKESPEARE.exists(), reason="Tiny Shakespeare is not on this machine")
def test_the_real_shakespeare_passes_the_real_checksum(monkeypatch):
    with served(SHAKESPEARE.read_bytes()) as (url, _):
        monkeypatch.setenv("DELTAFLOW_SHAKESPEARE_URL", url)
        assert opened(corpus="shakespeare").source == "shakespeare (1,115,394 characters)"


def test_another_text_is_not_kept(play, cache, monkeypatch, capfd):
    with served(play[:-1] + b"!") as (url, _):
        monkeypatch.setenv("DELTAFLOW_SHAKESPEARE_URL", url)
        message = error_of(corpus="shakespeare")
    assert message == (
        f"data.corpus: what {url} sent is not Tiny Shakespeare "
        f"(expected SHA-256 {hashlib.sha256(play).hexdigest()[:12]}...), and was not kept; "
        f"put the right file at {str(cache / 'tinyshakespeare.txt')!r}, "
        "or set data.path to a text file of your own"
    )
    assert list(cache.iterdir()) == []
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        ({"body": PLAY[:500], "length": len(PLAY)}, "IncompleteRead(500 bytes read, 740 more expected)"),
        ({"body": b"gone", "status": 404}, "404 Client Error: Not Found for url: URL"),
        ({"body": b"", "status": 503}, "503 Server Error: Service Unavailable for url: URL"),
    ],
)
def test_a_download_that_fails_leaves_nothing(play, cache, monkeypatch, capfd, reply, reason):
    with served(**reply) as (url, asked):
        monkeypatch.setenv("DELTAFLOW_SHAKESPEARE_URL", url)
        message = error_of(corpus="shakespeare")
    assert message == (
        f"data.corpus: shakespeare can't be fetched from {url} ({reason.replace('URL', url)}); without a network "
        f"put the right file at {str(cache / 'tinyshakespeare.txt')!r}, or set data.path to a text file of your own"
    )
    assert len(asked) == 1
    assert list(cache.iterdir()) == []
    assert capfd.readouterr() == ("", "")


def test_without_a_network_it_says_where_to_put_the_file(play, cache, monkeypatch, capfd):
    with socket.socket() as unused:  # bound and not listening: a connection is refused
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/input.txt"
        monkeypatch.setenv("DELTAFLOW_SHAKESPEARE_URL", url)
        file = cache / "tinyshakespeare.txt"
        expected = (
            f"data.corpus: shakespeare can't be fetched from {url} (Connection refused); without a network "
            f"put the right file at {str(file)!r}, or set data.path to a text file of your own"
        )
        assert error_of(corpus="shakespeare") == expected
        write(file, play[:-1])  # a wrong one is not used
        assert error_of(corpus="shakespeare") == expected
        write(file, play)
        assert opened(corpus="shakespeare").sha256 == hashlib.sha256(play).hexdigest()
    assert capfd.readouterr() == ("", "")


def test_a_server_that_says_nothing_is_left(play, monkeypatch):
    monkeypatch.setattr(corpus, "_TIMEOUT", 0.2)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        monkeypatch.setenv("DELTAFLOW_SHAKESPEARE_URL", f"http://127.0.0.1:{silent.getsockname()[1]}/")
        assert "(timed out); without a network" in error_of(corpus="shakespeare")


def test_the_cache_is_the_users_own_unless_told(monkeypatch, tmp_path):
    import pooch

    monkeypatch.setenv("DELTAFLOW_CACHE", "")
    assert corpus.cache_folder() == Path(pooch.os_cache("deltaflow"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("DELTAFLOW_CACHE", "~/tokens")
    assert corpus.cache_folder() == tmp_path / "tokens"


# Several files


def test_a_folder_and_a_pattern_are_their_files_one_after_the_other(tmp_path, cache):
    (tmp_path / "books" / "more").mkdir(parents=True)
    write(tmp_path / "books" / "b.txt", "\ufeff" + "b" * 51)
    write(tmp_path / "books" / "a.txt", "a" * 40)
    write(tmp_path / "books" / "more" / "c.txt", "é" * 60)
    write(tmp_path / "books" / "notes.md", "z" * 99)
    whole = "a" * 40 + "b" * 51 + "é" * 60
    for path, text_there in ((tmp_path / "books", whole), (tmp_path / "books" / "*.txt", whole[:91])):
        for placement in ("device", "host"):
            data = opened(path=str(path), context=2, placement=placement)
            assert data.tokenizer.decode(np.concatenate([data.train, data.val])) == text_there
    assert "3 files" in opened(path=str(tmp_path / "books"), context=2).source
    (tmp_path / "books" / "bad.txt").write_bytes(b"x\xff")
    bad = str(tmp_path / "books" / "bad.txt")
    assert error_of(path=str(tmp_path / "books"), context=2).startswith(f"data.path: {bad!r} is not UTF-8 text: byte")
    (tmp_path / "empty").mkdir()
    for name in ("empty", "*.text"):
        path = str(tmp_path / name)
        assert error_of(path=path) == (
            f"data.path: {path!r} holds no .txt file; expected a UTF-8 text file, or a folder or pattern of them"
        )
