"""Text and its origin: paths, folders, patterns, the download, and the place of every refusal."""

import gc
import hashlib
import os
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
from data.corpus import find, texts

SHAKESPEARE = Path(__file__).parents[2] / "shared" / "data" / "tinyshakespeare.txt"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """No test reads or writes the user's cache, or goes through a proxy; each runs in its own folder."""
    monkeypatch.setenv("DELTAFLOW_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.delenv("DELTAFLOW_SHAKESPEARE_URL", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "cache"


def write(path: str | Path, content: str | bytes = "abc") -> str:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def text_of(**config: Any) -> str:
    return "".join(texts(find(DataConfig(**config))))


def error_of(**config: Any) -> str:
    with pytest.raises(DataError) as error:
        text_of(**config)
    assert "\n" not in str(error.value)
    assert error.value.__suppress_context__ or error.value.__context__ is None
    return str(error.value)


# Python's manual


def test_python_docs_are_the_paragraphs_of_its_topics_in_sorted_order(monkeypatch):
    from pydoc_data import topics

    content = text_of()
    paragraphs = "\n\n".join(topics.topics[key] for key in sorted(topics.topics)).split("\n\n")
    assert content == "\n\n".join(text for index, text in enumerate(paragraphs) if text not in paragraphs[:index])
    assert len(content) < 0.9 * len("\n\n".join(paragraphs))  # or nothing was there to leave out
    monkeypatch.setattr(topics, "topics", {"b": "two", "c": "three", "a": "one"})
    assert text_of(corpus="python-docs") == "one\n\ntwo\n\nthree"
    monkeypatch.setitem(sys.modules, "pydoc_data", None)
    assert error_of().startswith("data.corpus: python-docs is missing from this Python")


# Paths


def test_paths_are_relative_to_the_current_folder_or_home(tmp_path, monkeypatch):
    write("a.txt", "abc\r\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert text_of(path="a.txt") == text_of(path="~/a.txt") == text_of(path=str(tmp_path / "a.txt")) == "abc\r\n"


def test_a_folder_and_a_pattern_are_their_files_one_after_the_other():
    write("books/b.txt", "\ufeffb")
    write("books/a.txt", "a")
    write("books/more/c.txt", "é")
    write("books/notes.md", "z")
    assert text_of(path="books") == text_of(path="books/**/*.txt") == "abé"  # no file's byte order mark is text
    assert text_of(path="books/*.txt") == text_of(path="b*/?.txt") == "ab"
    books = find(DataConfig(path="books"))
    assert (books.note, books.left_out) == ("3 files, ", "") and find(DataConfig(path="books/a*")).note == "1 file, "
    write("books/bad.txt", b"x\xff")
    assert error_of(path="books").startswith("data.path: 'books/bad.txt' is not UTF-8 text: byte")
    Path("empty").mkdir()
    for path in ("empty", "*.text"):
        assert error_of(path=path).startswith(f"data.path: {path!r} holds no .txt file; expected a UTF-8 text file")
    for path in ("nowhere/*.txt", str(Path.cwd() / "nowhere" / "*" / "a?.txt")):
        folder = path[: path.index("nowhere") + len("nowhere")]
        assert error_of(path=path).endswith(f"; its folder {folder!r} does not exist")
    for path in ("n*/books/*.txt", "books/*.text"):
        assert "does not exist" not in error_of(path=path)


def test_hidden_files_are_left_out_and_counted():
    """macOS writes ._a.txt into every zip, and __MACOSX/._a.txt."""
    write("books/a.txt", "abc")
    for name in ("._a.txt", "__MACOSX/._a.txt", ".git/b.txt", "more/.cache/c.txt"):
        write(f"books/{name}", b"\x00\x05\x16\x07\xff")
    for path in ("books", "books/**/*.txt"):
        assert text_of(path=path) == "abc"
        assert find(DataConfig(path=path)).left_out == "; 4 hidden files left out"
    assert error_of(path="books/._a.txt").startswith("data.path: 'books/._a.txt' is not")  # asked for by its name
    write(".texts/a.txt", "in a hidden folder")
    write("more/.a.txt")
    write("more/.b.txt")
    assert error_of(path="more").endswith("; 2 hidden files left out")
    assert text_of(path=".texts") == text_of(path=".texts/*.txt") == "in a hidden folder"


@pytest.mark.parametrize("name", ["notes[1].txt", "really?.txt", "a*.txt", "[a].txt", "books [2024]/x.txt"])
def test_a_path_that_exists_is_no_pattern(name):
    write("notes1.txt", "other")
    write("aa.txt", "other")
    write(name, "this one")
    assert text_of(path=name) == "this one"


def test_brackets_of_folders_are_no_pattern():
    write("books [2024]/a.txt", "a")
    write("books [2024]/b1.txt", "b")
    write("books 2/c.txt", "c")
    write("what?/d.txt", "d")
    assert text_of(path="books [2024]/*.txt") == text_of(path=str(Path.cwd() / "books [2024]" / "*.txt")) == "ab"
    assert text_of(path="books [2024]") == "ab" and text_of(path="what?") == text_of(path="what?/*.txt") == "d"
    assert text_of(path="books [2024]/b[0-9]*.txt") == text_of(path="books [2024]/../books [2024]/b*") == "b"


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (
            "C:\\texts\\a.txt",
            "is a path of Windows, and this is another system; give the path that the file has here; WSL",
        ),
        ("d:/texts/*.txt", "has that drive at /mnt/d"),
        ("\\\\server\\share\\a.txt", "is a path of Windows"),
        ("https://example.org/a.txt", "is a URL, and only files are read; download it first"),
        ("s3://bucket/*.txt", "is a URL, and only files are read; download it first"),
        ("file:///tmp/a.txt", "is a URL; give the path alone"),
        ("texts\\a.txt", "did you mean 'texts/a.txt'?"),
    ],
)
@pytest.mark.parametrize("kind", ["text", "tokens"])
def test_paths_of_other_systems_and_urls(path, message, kind):
    from data.source import open_source

    write("texts/a.txt")
    with pytest.raises(DataError) as error:
        open_source(DataConfig(kind=kind, path=path))
    assert str(error.value).startswith(f"data.path: {path!r} ") and message in str(error.value)


def test_a_missing_file_and_the_nearest(tmp_path):
    missing = f"does not exist (the current folder is {str(tmp_path)!r})"
    assert error_of(path="corpus.txt") == f"data.path: 'corpus.txt' {missing}"
    write("corpora.txt")
    assert error_of(path="corpus.txt") == f"data.path: 'corpus.txt' {missing}; did you mean 'corpora.txt'?"
    assert error_of(path="verse.txt") == f"data.path: 'verse.txt' {missing}"  # the endings alone are alike
    absolute = str(tmp_path / "verse.txt")
    assert error_of(path=absolute) == f"data.path: {absolute!r} does not exist"
    for folder in ("no", "corpora.txt"):
        assert error_of(path=f"{folder}/x").endswith(f"{missing}; nor does its folder {folder!r}")
    assert error_of(path="a\nb").startswith("data.path: 'a\\nb' does not exist ")


def test_what_is_not_a_regular_file(tmp_path):
    os.mkfifo("pipe")  # opening it would wait for a writer
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("sock")
        for path, kind in {"pipe": "pipe", "sock": "socket", "/dev/zero": "device", "/dev/null": "device"}.items():
            assert error_of(path=path) == f"data.path: {path!r} is a {kind}, expected a UTF-8 text file"


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("a\0b", "embedded null"),
        ("a" * 300, "File name too long"),
        ("loop", "Too many levels of symbolic links"),
        ("~no-such-user-here/a", "Could not determine home directory."),
    ],
)
def test_what_cannot_be_looked_up(path, reason):
    Path("loop").symlink_to("loop")
    assert error_of(path=path).startswith(f"data.path: {path!r} can't be opened ({reason}")


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="needs a file whose reading fails")
def test_a_read_that_fails():
    assert error_of(path="/proc/self/mem") == "data.path: '/proc/self/mem' can't be read (Input/output error)"


# Bytes


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
def test_a_file_that_is_not_utf8(content, byte, offset, line, charset):
    place = f"is not UTF-8 text: byte {byte} at offset {offset}, line {line}; "
    assert error_of(path=write("a.txt", content)) == (
        f"data.path: 'a.txt' {place}convert it, for example with iconv -f {charset} -t UTF-8"
    )
    assert error_of(path=write("a.bin", content)).endswith(f"{place}token ids are data.kind: tokens")


@pytest.mark.parametrize("chunk", [1, 2, 3, 5])
def test_characters_may_straddle_chunks(monkeypatch, chunk):
    monkeypatch.setattr(corpus, "CHUNK", chunk)
    content = "\ufeffaé\r\n語😀\ufeff" * 5
    digest = hashlib.sha256()
    assert "".join(texts(find(DataConfig(path=write("a.txt", content))), digest)) == content[1:]
    assert digest.digest() == hashlib.sha256(content.encode()).digest()
    write("a.txt", "aé\n\n語".encode() + b"\n\xe8\xaax")
    assert "byte 0xE8 at offset 9, line 4;" in error_of(path="a.txt")


@pytest.mark.parametrize("chunk", [7, 2**20])
@pytest.mark.parametrize(
    ("content", "offset", "line"),
    [
        (b"\0", 0, 1),
        (b"ab\nc\0", 4, 2),
        ("é\n\n".encode() + b"x\0", 5, 3),
        ("a\nb".encode("utf-16-le"), 1, 1),
        ("éa\n".encode() * 20 + b"ab\0", 82, 21),
    ],
)
def test_a_nul_is_no_text(monkeypatch, content, offset, line, chunk):
    monkeypatch.setattr(corpus, "CHUNK", chunk)
    place = f"is not text: byte 0x00 at offset {offset}, line {line}; expected a UTF-8 text file"
    assert place in error_of(path=write("a.txt", content))


def test_too_many_files_and_links_that_lead_back(monkeypatch):
    for name in ("b.txt", "a.txt"):
        write(name)
    for link in ("x", "y", "z"):
        Path(link).symlink_to(".")
    for pattern in ("*.txt", "**/*.txt", str(Path.cwd() / "**" / "*.txt"), "."):
        start = time.monotonic()
        assert find(DataConfig(path=pattern)).note == "2 files, "
        assert time.monotonic() - start < 5
    monkeypatch.setattr(corpus, "_MOST_FILES", 1)
    assert error_of(path="*.txt") == "data.path: '*.txt' has more than 1 files; put them into fewer"


# Tiny Shakespeare, from a server of our own

PLAY = b"First Citizen:\nBefore we proceed any further, hear me speak.\n\n" * 20


@pytest.fixture
def play(monkeypatch):
    """A short text in the place of Tiny Shakespeare."""
    monkeypatch.setattr(corpus, "_SHAKESPEARE_SHA256", hashlib.sha256(PLAY).hexdigest())
    return PLAY.decode()


@contextmanager
def answering(answer):
    """The URL of a server that calls `answer(connection)` once."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def work():
            with suppress(OSError):  # the other side had enough
                connection, _ = server.accept()
                with connection:
                    connection.recv(4096)
                    answer(connection)

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}/x.txt"
    thread.join(timeout=5)


def reply(body: bytes, status: str = "200 OK", **headers: Any):
    lines = [
        f"HTTP/1.1 {status}",
        *(f"{name}: {value}" for name, value in ({"Content-Length": len(body)} | headers).items()),
    ]
    return lambda connection: connection.sendall("\r\n".join([*lines, "\r\n"]).encode() + body)


def test_shakespeare_is_fetched_once(play, cache, monkeypatch, capfd):
    with answering(reply(PLAY)) as url:
        monkeypatch.setenv("DELTAFLOW_SHAKESPEARE_URL", url)
        assert text_of(corpus="shakespeare") == play
    assert text_of(corpus="shakespeare") == play  # without a server
    assert [file.name for file in cache.iterdir()] == ["tinyshakespeare.txt"]
    assert capfd.readouterr() == ("", "")


@pytest.mark.skipif(not SHAKESPEARE.exists(), reason="Tiny Shakespeare is not on this machine")
def test_the_real_shakespeare_passes_the_real_checksum(monkeypatch):
    with answering(reply(SHAKESPEARE.read_bytes())) as url:
        monkeypatch.setenv("DELTAFLOW_SHAKESPEARE_URL", url)
        assert len(text_of(corpus="shakespeare")) == 1_115_394


def endless(connection):
    connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
    while True:
        connection.sendall(b"x" * 2**16)


def drip(connection):
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
    for _ in range(40):
        connection.sendall(b"x")
        time.sleep(0.05)


BOMB = zlib.compress(bytes(2**24), 9, 31)
ANSWERS = {
    "another text": (reply(PLAY[:-1] + b"!"), "what URL sent is not Tiny Shakespeare"),
    "a part": (
        reply(PLAY[:500], **{"Content-Length": 9999}),
        "(IncompleteRead(500 bytes read, 9499 more expected)); with",
    ),
    "404": (reply(b"gone", "404 Not Found"), "(404 Client Error: Not Found for url: URL); without a network"),
    "503": (reply(b"", "503 Busy"), "(503 Server Error: Busy for url: URL); without a network"),
    "endless": (endless, "(it sent more than 100,000 bytes)"),
    "a bomb": (reply(BOMB, **{"Content-Encoding": "gzip"}), "(it sent more than 100,000 bytes)"),
    "drops": (drip, "(it was not all there after 1 s)"),
    "a file": (reply(b"", "302 Found", Location="file:///etc/passwd"), "(No connection adapters were found for 'file:"),
    "nonsense": (lambda connection: connection.sendall(b"\0\xff" * 100), "can't be fetched from URL ("),
    "silence": (lambda connection: connection.recv(1), "(timed out)"),
}


# pooch leaves the socket of a failed download to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(("answer", "reason"), ANSWERS.values(), ids=ANSWERS)
def test_a_download_that_fails_leaves_nothing(play, cache, monkeypatch, capfd, answer, reason):
    monkeypatch.setattr(corpus, "_SHAKESPEARE_MOST", 100_000)
    monkeypatch.setattr(corpus, "_DEADLINE", 1)
    monkeypatch.setattr(corpus, "_TIMEOUT", 0.5)
    with answering(answer) as url:
        monkeypatch.setenv("DELTAFLOW_SHAKESPEARE_URL", url)
        message = error_of(corpus="shakespeare")
    assert message.startswith("data.corpus: ") and reason.replace("URL", url) in message
    assert f"put the right file at {str(cache / 'tinyshakespeare.txt')!r}, or set data.path" in message
    gc.collect()
    assert list(cache.iterdir()) == [] and capfd.readouterr() == ("", "")


def test_without_a_network_a_file_in_the_cache_is_used(play, cache, monkeypatch):
    with socket.socket() as unused:  # bound and not listening: a connection is refused
        unused.bind(("127.0.0.1", 0))
        monkeypatch.setenv("DELTAFLOW_SHAKESPEARE_URL", f"http://127.0.0.1:{unused.getsockname()[1]}/x.txt")
        file = cache / "tinyshakespeare.txt"
        assert f"(Connection refused); without a network put the right file at '{file}'" in error_of(
            corpus="shakespeare"
        )
        write(file, PLAY[:-1])  # a wrong one is not used
        assert "(Connection refused)" in error_of(corpus="shakespeare")
        write(file, PLAY)
        assert text_of(corpus="shakespeare") == play


def test_the_cache_is_in_the_users_cache_folder_by_default(monkeypatch, tmp_path):
    import pooch

    monkeypatch.setenv("DELTAFLOW_CACHE", "")
    assert files.cache_folder() == Path(pooch.os_cache("deltaflow"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("DELTAFLOW_CACHE", "~/tokens")
    assert files.cache_folder() == tmp_path / "tokens"
