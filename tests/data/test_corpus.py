"""Text and its origin: paths, folders, patterns, the download, and the place of every refusal."""

import gc
import hashlib
import os
import re
import socket
import sys
import threading
import time
import zlib
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from data import DataError, corpus, files
from data.config import DataConfig
from data.corpus import downloaded, find, texts
from sources import SHAKESPEARE, opened, refused, write


def text_of(**config: Any) -> str:
    return "".join(texts(find(DataConfig(**config))))


def error_of(path: str) -> str:
    """The message behind the path."""
    message = refused(path=path)
    assert message.startswith(f"data.path: {path!r} ")
    return message.removeprefix(f"data.path: {path!r} ")


def test_python_docs_are_the_paragraphs_of_its_topics_in_sorted_order(monkeypatch, wording):
    from pydoc_data import topics

    content = text_of()
    paragraphs = "\n\n".join(topics.topics[key] for key in sorted(topics.topics)).split("\n\n")
    assert content == "\n\n".join(text for index, text in enumerate(paragraphs) if text not in paragraphs[:index])
    assert len(content) < 0.9 * len("\n\n".join(paragraphs))  # or nothing was there to leave out
    monkeypatch.setattr(topics, "topics", {"b": "two", "c": "three", "a": "one"})
    assert text_of(corpus="python-docs") == "one\n\ntwo\n\nthree"
    monkeypatch.setitem(sys.modules, "pydoc_data", None)
    wording(refused(), "data.corpus")


# Paths


def test_a_folder_and_a_pattern_are_their_files_one_after_the_other(tmp_path, monkeypatch, wording):
    for name, content in {"b.txt": "\ufeffb", "a.txt": "a\r\n", "more/c.txt": "é", "notes.md": "z"}.items():
        write(f"books/{name}", content)
    monkeypatch.setenv("HOME", str(tmp_path))
    for path in ("books/a.txt", "~/books/a.txt", str(tmp_path / "books/a.txt")):
        assert text_of(path=path) == "a\r\n"
    assert text_of(path="books") == text_of(path="books/**/*.txt") == "a\r\nbé"  # no byte order mark is text
    assert text_of(path="books/*.txt") == text_of(path="b*/?.txt") == "a\r\nb"
    books = find(DataConfig(path="books"))
    assert (books.note, books.left_out) == ("3 files, ", "") and find(DataConfig(path="books/a*")).note == "1 file, "
    write("books/bad.txt", b"x\xff")
    wording(refused(path="books"), "data.path")
    Path("empty").mkdir()
    for path in ("empty", "*.text", "n*/books/*.txt", "books/*.text"):
        wording(error_of(path))
    for path in ("nowhere/*.txt", str(tmp_path / "nowhere" / "*" / "a?.txt")):
        folder = path[: path.index("nowhere") + len("nowhere")]
        assert repr(folder) in error_of(path)
        wording(error_of(path))


def test_hidden_files_are_left_out_and_counted(wording):
    """macOS writes ._a.txt into every zip, and __MACOSX/._a.txt."""
    write("books/a.txt", "abc")
    for name in ("._a.txt", "__MACOSX/._a.txt", ".git/b.txt", "more/.cache/c.txt"):
        write(f"books/{name}", b"\x00\x05\x16\x07\xff")
    for path in ("books", "books/**/*.txt"):
        assert text_of(path=path) == "abc"
        assert find(DataConfig(path=path)).left_out == "; 4 hidden files left out"
    wording(error_of("books/._a.txt"))  # asked for by its name
    write(".texts/a.txt", "in a hidden folder")
    write("more/.a.txt")
    write("more/.b.txt")
    wording(error_of("more"))
    assert text_of(path=".texts") == text_of(path=".texts/*.txt") == "in a hidden folder"


def test_a_path_that_exists_is_no_pattern():
    write("notes1.txt", "other")
    write("aa.txt", "other")
    for name in ("notes[1].txt", "really?.txt", "a*.txt", "[a].txt", "books [2024]/a.txt"):
        assert text_of(path=write(name, name)) == name
    write("books [2024]/a.txt", "a")
    write("books [2024]/b1.txt", "b")
    write("books 2/c.txt", "c")
    write("what?/d.txt", "d")
    absolute = str(Path.cwd() / "books [2024]" / "*.txt")
    assert text_of(path="books [2024]/*.txt") == text_of(path=absolute) == text_of(path="books [2024]") == "ab"
    assert text_of(path="what?") == text_of(path="what?/*.txt") == "d"
    assert text_of(path="books [2024]/b[0-9]*.txt") == text_of(path="books [2024]/../books [2024]/b*") == "b"


@pytest.mark.parametrize(
    "path",
    [
        *("C:\\texts\\a.txt", "d:/texts/*.txt", "\\\\server\\share\\a.txt", "texts\\a.txt"),
        *("https://example.org/a.txt", "s3://bucket/*.txt", "file:///tmp/a.txt"),
    ],
)
def test_paths_of_other_systems_and_urls(path, wording):
    write("texts/a.txt")
    wording(error_of(path))
    wording(refused(path=path, kind="tokens"), "data.path")


def test_a_missing_file_and_the_nearest(tmp_path, wording):
    missing = error_of("corpus.txt")
    assert repr(str(tmp_path)) in missing
    wording(missing)
    write("corpora.txt")
    wording(error_of("corpus.txt"))
    assert error_of("verse.txt") == missing  # the endings alone are alike
    wording(error_of(str(tmp_path / "verse.txt")))
    for path in ("no/x", "corpora.txt/x", "a\nb"):
        wording(error_of(path))


def test_what_is_not_a_regular_file_or_cannot_be_read(wording):
    os.mkfifo("pipe")  # opening it would wait for a writer
    Path("loop").symlink_to("loop")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("sock")
        for path in ("pipe", "sock", "/dev/zero", "/dev/null"):
            wording(error_of(path))
    for path in ("a\0b", "a" * 300, "loop", "~no-such-user-here/a"):
        wording(error_of(path), volatile=r"(stat: )?embedded null [\w ]+")
    if Path("/proc/self/mem").exists():
        wording(error_of("/proc/self/mem"))


@pytest.mark.slow
def test_too_many_files_and_links_that_lead_back(wording):
    for name in ("b.txt", "a.txt"):
        write(name)
    for link in ("x", "y", "z"):
        Path(link).symlink_to(".")
    for pattern in ("*.txt", "**/*.txt", str(Path.cwd() / "**" / "*.txt"), "."):
        start = time.monotonic()
        assert find(DataConfig(path=pattern)).note == "2 files, "
        assert time.monotonic() - start < 5
    for number in range(10_000):
        Path(f"{number}.txt").touch()
    wording(error_of("*.txt"))
    Path("a.txt").unlink()
    Path("b.txt").unlink()
    assert find(DataConfig(path="*.txt")).note == "10,000 files, "


# Bytes


NOT_TEXT = [
    ("one\ntwo é\n".encode("latin1") * 50, "0xE9", "8", "2"),
    (b"a\n" * 2_000 + b"\xff", "0xFF", "4,000", "2,001"),
    ("hello".encode("utf-16"), "0xFF", "0", "1"),
    (b"x" * 1000 + b"\xe2\x82", "0xE2", "1,000", "1"),  # cut in a character
    (b"ok\n\xed\xa0\x80", "0xED", "3", "2"),  # a surrogate
    ("aé\n\n語".encode() + b"\n\xe8\xaax", "0xE8", "9", "4"),
    (b"\0", "0x00", "0", "1"),
    (b"ab\nc\0", "0x00", "4", "2"),
    ("é\n\n".encode() + b"x\0", "0x00", "5", "3"),
    ("a\nb".encode("utf-16-le"), "0x00", "1", "1"),
    ("éa\n".encode() * 20 + b"ab\0", "0x00", "82", "21"),
]


@pytest.mark.parametrize(("content", "byte", "offset", "line"), NOT_TEXT, ids=range(len(NOT_TEXT)))
def test_a_file_that_is_no_text(content, byte, offset, line, wording):
    message = error_of(write("a.txt", content))
    wording(message)
    assert re.findall(r"0x\w+|\d[\d,]*(?=[,;])", message)[:3] == [byte, offset, line]
    with pytest.raises(DataError) as error:
        list(texts(find(DataConfig(path="a.txt")), chunk_bytes=7))
    assert message in str(error.value)
    wording(error_of(write("a.bin", content)))


@pytest.mark.parametrize("chunk", [1, 2, 3, 5])
def test_characters_may_straddle_chunks(chunk):
    content = "\ufeffaé\r\n語😀\ufeff" * 5
    digest = hashlib.sha256()
    assert "".join(texts(find(DataConfig(path=write("a.txt", content))), digest, chunk)) == content[1:]
    assert digest.digest() == hashlib.sha256(content.encode()).digest()


# Tiny Shakespeare, from a server of our own

PORT = r"(?<=127\.0\.0\.1:)\d+|0x[0-9a-f]+|\(\0.*\)"  # and an answer of bytes
PLAY = b"First Citizen:\nBefore we proceed any further, hear me speak.\n\n" * 20


@contextmanager
def answering(answer, sha256: str = hashlib.sha256(PLAY).hexdigest(), **limits: Any):
    """Tiny Shakespeare, to be downloaded from a server that calls `answer(connection)` once."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def work():
            with suppress(OSError):  # the other side had enough
                connection, _ = server.accept()
                with connection:
                    connection.settimeout(1)
                    connection.recv(4096)
                    answer(connection)

        url = f"http://127.0.0.1:{server.getsockname()[1]}/x.txt"
        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        yield corpus.SHAKESPEARE._replace(url=url, sha256=sha256, **limits)
    thread.join(timeout=5)


def reply(body: bytes, status: str = "200 OK", **headers: Any):
    lines = [f"{name}: {value}\r\n" for name, value in ({"Content-Length": len(body)} | headers).items()]
    return lambda connection: connection.sendall(f"HTTP/1.1 {status}\r\n{''.join(lines)}\r\n".encode() + body)


def test_shakespeare_is_fetched_once_and_without_a_network_comes_from_the_cache(cache, capfd, wording):
    with answering(reply(PLAY)) as wanted:
        file = downloaded(wanted)
    assert file == cache / "tinyshakespeare.txt" and file.read_bytes() == PLAY
    assert downloaded(wanted) == file  # without a server
    assert list(cache.iterdir()) == [file] and capfd.readouterr() == ("", "")
    write(file, PLAY[:-1])  # a wrong one is not used
    for _ in range(2):
        message = refused(lambda: downloaded(wanted))
        assert f"'{file}'" in message
        wording(message, "data.corpus", volatile=PORT)
        file.unlink(missing_ok=True)
    write(file, PLAY)
    assert downloaded(wanted) == file


@pytest.mark.skipif(not SHAKESPEARE.exists(), reason="Tiny Shakespeare is not on this machine")
def test_the_real_shakespeare_passes_the_real_checksum_and_has_its_published_figures():
    with answering(reply(SHAKESPEARE.read_bytes()), corpus.SHAKESPEARE.sha256) as wanted:
        downloaded(wanted)
    dataset = opened(corpus="shakespeare")  # from the cache
    assert (dataset.vocab_size, len(dataset.train), len(dataset.val)) == (65, 1_003_854, 111_540)


def endless(connection):
    connection.settimeout(0.3)
    connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
    while True:
        connection.sendall(b"x" * 2**16)


def drip(connection):
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
    for _ in range(40):
        connection.sendall(b"x")
        time.sleep(0.02)


BOMB = zlib.compress(bytes(2**24), 9, 31)
MOST = {"most": 100_000}
ANSWERS = {
    "another text": (reply(PLAY[:-1] + b"!"), {}),
    "a part": (reply(PLAY[:500], **{"Content-Length": 9999}), {}),
    "404": (reply(b"gone", "404 Not Found"), {}),
    "503": (reply(b"", "503 Busy"), {}),
    "endless": (endless, MOST),
    "a bomb": (reply(BOMB, **{"Content-Encoding": "gzip"}), MOST),
    "drops": (drip, {"deadline": 0.3}),
    "a file": (reply(b"", "302 Found", Location="file:///etc/passwd"), {}),
    "nonsense": (lambda connection: connection.sendall(b"\0\xff" * 100), {}),
    "silence": (lambda connection: connection.recv(1), {"timeout": 0.2}),
}


# pooch leaves the socket of a failed download to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    ("answer", "limits"),
    [
        pytest.param(*x, marks=pytest.mark.slow if name in ("drops", "endless", "a bomb") else ())
        for name, x in ANSWERS.items()
    ],
    ids=ANSWERS,
)
def test_a_download_that_fails_leaves_nothing(cache, capfd, answer, limits, wording):
    with answering(answer, **limits) as wanted:
        message = refused(lambda: downloaded(wanted))
    assert wanted.url in message and repr(str(cache / "tinyshakespeare.txt")) in message
    wording(message, "data.corpus", volatile=PORT)
    gc.collect()
    assert list(cache.iterdir()) == [] and capfd.readouterr() == ("", "")


def test_the_cache_is_in_the_users_cache_folder_by_default(monkeypatch, tmp_path):
    import pooch

    monkeypatch.setenv("DELTAFLOW_CACHE", "")
    assert files.cache_folder() == Path(pooch.os_cache("deltaflow"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("DELTAFLOW_CACHE", "~/tokens")
    assert files.cache_folder() == tmp_path / "tokens"
