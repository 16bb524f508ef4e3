"""Files and names that were made to do harm: the sweep in small, and that it would notice."""

import os
import pickle
import socket
import subprocess
import sys
import threading
import time
import zlib
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from data import corpus
from data.config import DataConfig
from data.errors import DataError
from data.files import content_of, json_of
from data.open import open_source
from scripts.torture import audit, hostile, pickles

ROOT = Path(__file__).parents[2]


def refused(**config) -> str:
    with pytest.raises(DataError) as caught:
        open_source(DataConfig(**config))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_sweep_in_small():
    found = list(hostile.rows(scale=0.1, seed=1))
    assert len(found) == 5
    for row in found:
        assert row.held == row.trials > 0, row.broken
    assert sum(row.trials for row in found) > 100


def test_the_sweep_notices_what_is_executed_and_what_is_written(tmp_path):
    for part in ("runs", "work"):
        (tmp_path / part).mkdir()
    evil = pickle.dumps(pickles.Marker(tmp_path / "executed"))
    row = audit.sweep("", "", [("a", lambda: str(pickle.loads(evil))[:0])], tmp_path)
    assert row.held == 0 and row.broken == ("a: was executed",)

    def trial(call):
        row = audit.sweep("", "", [("a", lambda: (call(), "")[1])], tmp_path)
        return row.held, row.broken

    assert trial(lambda: (tmp_path / "runs" / "x").write_text("x")) == (1, ())
    assert trial(lambda: (tmp_path / "x").write_text("x"))[1] == (f"a: wrote {tmp_path / 'x'}",)
    assert trial(lambda: (tmp_path / "x").rename(tmp_path / "y"))[0] == 0
    assert trial(lambda: os.remove(tmp_path / "y"))[0] == 0
    assert trial(lambda: (tmp_path / "z").mkdir())[0] == 0
    assert trial(lambda: subprocess.run(["true"], check=True))[1][0].startswith("a: ran subprocess.Popen")


def test_the_sweep_notices_a_reader_that_unpickles(monkeypatch):
    real = np.lib.format.open_memmap

    def careless(path, mode):
        np.load(path, allow_pickle=True)
        return real(path, mode=mode)

    monkeypatch.setattr(np.lib.format, "open_memmap", careless)
    row = next(iter(hostile.rows(scale=0.1, seed=1)))
    assert row.held < row.trials and any("executed" in line for line in row.broken)


def test_the_sweep_notices_a_name_that_is_not_checked(monkeypatch):
    monkeypatch.setattr("train.config.load.safe", lambda name: True)
    monkeypatch.setattr("train.config.expand.safe", lambda name: True)
    row = list(hostile.rows(scale=0.02, seed=1))[1]
    assert row.held < row.trials


# Files


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


@pytest.mark.parametrize(
    ("content", "offset", "line"),
    [(b"\0", 0, 1), (b"ab\nc\0", 4, 2), ("é\n\n".encode() + b"x\0", 5, 3), ("a\nb".encode("utf-16-le"), 1, 1)],
)
def test_a_nul_is_no_text(tmp_path, content, offset, line):
    (tmp_path / "a.txt").write_bytes(content)
    said = refused(path=str(tmp_path / "a.txt"))
    assert f"is not text: byte 0x00 at offset {offset}, line {line}; expected a UTF-8 text file" in said


def test_a_nul_far_into_the_file_is_placed(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus, "_CHUNK", 7)  # é straddles chunks
    (tmp_path / "a.txt").write_bytes("éa\n".encode() * 20 + b"ab\0")
    assert "byte 0x00 at offset 82, line 21;" in refused(path=str(tmp_path / "a.txt"))


def test_a_folder_of_too_many_files_and_links_that_lead_back(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("b.txt", "a.txt", ".hidden.txt"):
        (tmp_path / name).write_text(name * 9, encoding="utf-8")
    for link in ("x", "y", "z"):
        (tmp_path / link).symlink_to(".")
    for pattern in ("*.txt", "**/*.txt", str(tmp_path / "**" / "*.txt")):
        began = time.monotonic()
        assert "2 files" in open_source(DataConfig(path=pattern, context=2)).source
        assert time.monotonic() - began < 5
    monkeypatch.setattr(corpus, "_MOST_FILES", 1)
    said = "data.path: '*.txt' has more than 1 files; put them into fewer"
    assert refused(path="*.txt") == said


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
from data.open import open_source
from data.tokenizer import DataError
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    source = open_source(DataConfig(**eval(sys.argv[1])))
    source.train_batches(4, 0, 0, 3)
    said = source.details
except DataError as error:
    said = str(error)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, said)
"""


def grown(**config) -> tuple[int, str]:
    """(kilobytes by which a fresh process grew when it opened this data, what it said)."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    line = [sys.executable, "-c", MEASURE, repr(config)]
    done = subprocess.run(line, env=environment, capture_output=True, text=True, check=True, timeout=300)
    kilobytes, _, said = done.stdout.partition(" ")
    return int(kilobytes), said


def test_a_text_larger_than_its_memory_is_read_in_bounded_memory(tmp_path, monkeypatch):
    """As many links to one file: 200 MB of text, of which the map is a tenth of what one copy would be."""
    (tmp_path / "a.txt").write_text("the quick brown fox jumps over the lazy dog\n" * 100_000, encoding="utf-8")
    for link in range(45):
        (tmp_path / f"b{link:02}.txt").symlink_to("a.txt")
    monkeypatch.setenv("DELTAFLOW_CACHE", str(tmp_path / "cache"))
    grew, said = grown(path=str(tmp_path), tokenizer="byte", placement="host")
    assert "tokens 182,160,000 + " in said
    assert grew < 100_000  # kilobytes


def test_a_sparse_file_of_terabytes_is_refused_at_once(tmp_path):
    with open(tmp_path / "a.txt", "wb") as file:
        file.truncate(2**42)
    began = time.monotonic()
    said = refused(path=str(tmp_path / "a.txt"))
    assert "is not text: byte 0x00 at offset 0" in said and time.monotonic() - began < 5
    os.rename(tmp_path / "a.txt", tmp_path / "a.bin")
    (tmp_path / "a.json").write_text('{"dtype": "uint8", "vocab_size": 256}', encoding="utf-8")
    said = refused(kind="tokens", path=str(tmp_path / "a.bin"))
    assert "has 4,398,046,511,104 tokens, at most 2,147,483,648 have positions" in said


def test_a_pipe_beside_token_ids_is_not_waited_for(tmp_path):
    (tmp_path / "a.bin").write_bytes(b"12345678")
    os.mkfifo(tmp_path / "a.json")
    assert "(expected a file, got a pipe)" in refused(kind="tokens", path=str(tmp_path / "a.bin"))


# Downloads


@contextmanager
def answering(answer):
    """A server that calls `answer(connection)` once; the URL."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def work():
            try:
                connection, _ = server.accept()
                with connection:
                    connection.recv(4096)
                    answer(connection)
            except OSError:
                pass  # the other side had enough

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}/x.txt"
    thread.join(timeout=5)


def endless(connection):
    connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
    while True:
        connection.sendall(b"x" * 2**16)


def drip(connection):
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
    for _ in range(40):
        connection.sendall(b"x")
        time.sleep(0.05)


def slow_header(connection):
    for _ in range(40):
        connection.sendall(b"H")
        time.sleep(0.05)


def bomb(connection):
    packed = zlib.compress(bytes(2**24), 9, 31)
    head = f"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: {len(packed)}\r\n\r\n"
    connection.sendall(head.encode() + packed)


def elsewhere(connection):
    connection.sendall(b"HTTP/1.1 302 Found\r\nLocation: file:///etc/passwd\r\nContent-Length: 0\r\n\r\n")


def nonsense(connection):
    connection.sendall(b"\0\xff" * 100)


def test_a_compressed_answer_is_not_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus, "_SHAKESPEARE_MOST", 100_000)  # it has 16,000, and a thousand times that unpacked
    monkeypatch.setenv("DELTAFLOW_CACHE", str(tmp_path / "cache"))
    with answering(bomb) as url:
        monkeypatch.setenv("DELTAFLOW_SHAKESPEARE_URL", url)
        assert f"what {url} sent is not Tiny Shakespeare" in refused(corpus="shakespeare")
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (endless, "it sent more than 100,000 bytes"),
        (drip, "it was not all there after 1 s"),
        (slow_header, "it was not all there after 1 s"),
        (elsewhere, "No connection adapters were found for 'file:///etc/passwd'"),
        (nonsense, ""),
    ],
    ids=lambda x: getattr(x, "__name__", ""),
)
def test_an_answer_that_is_none_is_left_and_nothing_of_it_kept(tmp_path, monkeypatch, answer, said):
    monkeypatch.setattr(corpus, "_SHAKESPEARE_MOST", 100_000)
    monkeypatch.setattr(corpus, "_DEADLINE", 1)
    monkeypatch.setenv("DELTAFLOW_CACHE", str(tmp_path / "cache"))
    with answering(answer) as url:
        monkeypatch.setenv("DELTAFLOW_SHAKESPEARE_URL", url)
        message = refused(corpus="shakespeare")
    assert f"data.corpus: shakespeare can't be fetched from {url} ({said}" in message
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_redirect_that_goes_round_is_left(tmp_path, monkeypatch):
    monkeypatch.setenv("DELTAFLOW_CACHE", str(tmp_path / "cache"))
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}/"
        answer = f"HTTP/1.1 302 Found\r\nLocation: {url}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode()

        def work():
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection:
                    connection.recv(4096)
                    connection.sendall(answer)

        threading.Thread(target=work, daemon=True).start()
        monkeypatch.setenv("DELTAFLOW_SHAKESPEARE_URL", url)
        assert "(Exceeded 30 redirects.)" in refused(corpus="shakespeare")
        server.shutdown(socket.SHUT_RDWR)
