"""Where a corpus comes from, and its bytes as checked text."""

import codecs
import io
import logging
import os
import platform
import secrets
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from .config import DataConfig
from .errors import DataError
from .files import beside, kind_of

_CHUNK = 2**20
_SHAKESPEARE_URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
_SHAKESPEARE_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
_TEXT = "a UTF-8 text file"
_SHAKESPEARE_MOST = 2**24  # bytes, sixteen times what it has: an endless answer is not waited for
_TIMEOUT = 10  # seconds without an answer
_DEADLINE = 300  # seconds until all of it is there
_MOST_FILES = 10_000


@dataclass(frozen=True)
class Corpus:
    """A named source of bytes that can be read more than once."""

    name: str
    label: str  # how an error line starts
    open: Callable[[], BinaryIO]
    path: Path | None = None  # where the bytes are a file
    note: str = ""  # for the start-up block
    parts: tuple["Corpus", ...] = ()  # read one after the other; `open` is then of no use


def find(config: DataConfig) -> Corpus:
    """The corpus that the config names; shakespeare is fetched. Raises DataError when it can't be had."""
    if config.path is not None and config.kind == "text" and (files := _several(config.path)) is not None:
        label = f"data.path: {config.path!r}"
        if not files:
            raise DataError(f"{label} holds no .txt file; expected {_TEXT}, or a folder or pattern of them")
        parts = tuple(_file(file, f"data.path: {file!r}", file) for file in files)
        return Corpus(config.path, label, io.BytesIO, note=f"{len(parts):,} files, ", parts=parts)
    if config.path is not None:
        expected = _TEXT if config.kind == "text" else "an .npy or .bin file of token ids"
        return _file(config.path, f"data.path: {config.path!r}", config.path, expected)
    if config.corpus == "shakespeare":
        return _file("shakespeare", "data.corpus: shakespeare", _shakespeare())
    content = _python_docs()
    note = f"Python {platform.python_version()}, "
    return Corpus("python-docs", "data.corpus: python-docs", lambda: io.BytesIO(content), note=note)


def _python_docs() -> bytes:
    """Python's own manual: real text that every CPython carries. It differs by Python version.

    Its topics repeat one another, a fifth of the text; a paragraph is kept where it first stands, or else a twelfth of
    the held-out windows would have been trained on.
    """
    try:
        from pydoc_data import topics
    except ImportError:
        raise DataError(
            "data.corpus: python-docs is missing from this Python (it has no module pydoc_data.topics); "
            "set data.path to a UTF-8 text file"
        ) from None
    paragraphs = "\n\n".join(text for _, text in sorted(topics.topics.items())).split("\n\n")
    return "\n\n".join(dict.fromkeys(paragraphs)).encode()


def _several(where: str) -> list[str] | None:
    """The .txt files below a folder, or what a pattern with * or ? matches, sorted; None for a path to one file."""
    try:
        path = Path(where).expanduser()
        if path.is_dir():
            matched = path.rglob("*.txt")
        elif path.exists() or not any(mark in where for mark in "*?"):
            return None
        else:  # Path's ** does not follow links: with two to the folder itself there would be no end of them
            matched = (file for file in Path(path.anchor).glob(str(path.relative_to(path.anchor))) if _shown(file))
        files = sorted(str(file) for file in islice((f for f in matched if f.is_file()), _MOST_FILES + 1))
        if len(files) > _MOST_FILES:
            raise DataError(f"data.path: {where!r} has more than {_MOST_FILES:,} files; put them into fewer")
        return files
    except DataError:
        raise
    except (OSError, ValueError, RuntimeError):  # what one file of that path is refused for
        return None


def _shown(file: Path) -> bool:
    """As a shell's * has it."""
    return not file.name.startswith(".")


def _file(name: str, label: str, where: str, expected: str = _TEXT) -> Corpus:
    """Refuses what isn't a regular file before opening it: a pipe would block, a device may never end."""
    path = Path(where)
    try:
        path = path.expanduser()
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(f"{label} does not exist (the current folder is {os.getcwd()!r}){_nearest(path)}") from None
    except (OSError, ValueError, RuntimeError) as error:  # no permission; a null character; no such user's home
        raise DataError(f"{label} can't be opened ({reason(error)})") from None
    if kind := kind_of(mode):
        raise DataError(f"{label} is {kind}, expected {expected}")
    return Corpus(name, label, lambda: open(path, "rb"), path)


def _nearest(path: Path) -> str:
    if not path.parent.is_dir():
        return f"; nor does its folder {str(path.parent)!r}"
    near = beside(path)
    return f"; did you mean {str(near)!r}?" if near else ""


def cache_folder() -> Path:
    """`DELTAFLOW_CACHE`, or else the user's cache folder for deltaflow. It need not exist."""
    if folder := os.environ.get("DELTAFLOW_CACHE"):
        return Path(folder).expanduser().absolute()
    import pooch

    return Path(pooch.os_cache("deltaflow"))


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file that takes the place of `path` once it is whole, and leaves nothing when it can't be. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _shakespeare() -> str:
    """The path of Tiny Shakespeare, downloaded at the first use. Its checksum is known: nothing else is ever used."""
    import pooch

    url = os.environ.get("DELTAFLOW_SHAKESPEARE_URL") or _SHAKESPEARE_URL
    target = cache_folder() / "tinyshakespeare.txt"
    remedy = f"put the right file at {str(target)!r}, or set data.path to a text file of your own"
    logger = pooch.get_logger()
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        return pooch.retrieve(
            url,
            known_hash=f"sha256:{_SHAKESPEARE_SHA256}",
            fname=target.name,
            path=target.parent,
            downloader=_download,  # pyright: ignore[reportArgumentType]  (pooch 1.9 annotates it wrongly)
        )
    except OSError as error:
        raise DataError(
            f"data.corpus: shakespeare can't be fetched from {url} ({reason(error)}); without a network {remedy}"
        ) from None
    except ValueError:
        raise DataError(
            f"data.corpus: what {url} sent is not Tiny Shakespeare (expected SHA-256 {_SHAKESPEARE_SHA256[:12]}...), "
            f"and was not kept; {remedy}"
        ) from None
    finally:
        logger.setLevel(level)


def _download(url: str, file: str, _: Any) -> None:
    """For pooch: puts what the server sends into `file`, which pooch checks and moves. Raises OSError when it fails.

    In a thread that can be left: a server that sends a byte now and then keeps every single read within its time.
    """
    failed: list[BaseException] = []

    def work() -> None:
        try:
            _receive(url, file)
        except BaseException as error:  # of two libraries
            failed.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(_DEADLINE)
    if thread.is_alive():
        raise OSError(f"it was not all there after {_DEADLINE:g} s")
    if failed:
        raise OSError(reason(failed[0]))


def _receive(url: str, file: str) -> None:
    import requests  # pooch's own

    with requests.get(url, stream=True, timeout=_TIMEOUT) as response, open(file, "wb") as out:
        response.raise_for_status()
        left = _SHAKESPEARE_MOST
        for chunk in response.raw.stream(_CHUNK, decode_content=False):  # a compressed one may be a bomb
            left -= len(chunk)
            if left < 0:
                raise OSError(f"it sent more than {_SHAKESPEARE_MOST:,} bytes")
            out.write(chunk)


def reason(error: BaseException) -> str:
    """The innermost cause, on one line: "Connection refused" rather than what each layer around it says."""
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    return (getattr(error, "strerror", None) or str(error) or type(error).__name__).replace("\n", " ")


@dataclass(frozen=True)
class Mapped:
    """A memory-mapped file, as it was when it was opened.

    To read a map of a file that was cut since then ends the process (SIGBUS), and one that was written to would give
    other batches: so whoever reads it asks first. A file that was removed or replaced stays as it is in the map.
    """

    label: str
    path: Path
    known: tuple[int, ...]

    @staticmethod
    def of(label: str, path: Path) -> "Mapped":
        """Raises DataError when the file is gone."""
        try:
            return Mapped(label, path, _identity(path))
        except OSError as error:
            raise DataError(f"{label} can't be read ({reason(error)})") from None

    def check(self) -> None:
        """Raises DataError when the file has changed."""
        try:
            now = _identity(self.path)
        except OSError:
            return
        if now[:2] == self.known[:2] and now != self.known:
            raise DataError(f"{self.label} changed while it was in use; start again when it is as it was")


def _identity(path: Path) -> tuple[int, ...]:
    found = path.stat()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def changed(corpus: Corpus) -> DataError:
    """What to raise when a second pass does not find what the first one found."""
    return DataError(f"{corpus.label} changed while it was read; start again when it is complete")


def texts(corpus: Corpus, seen: Callable[[bytes], None] = lambda chunk: None) -> Iterator[str]:
    """The text in parts, without its byte order mark, line ends as they are; `seen` gets the bytes as they are read.

    Raises DataError when the file can't be read or is not UTF-8.
    """
    for part in corpus.parts:
        yield from texts(part, seen)
    if corpus.parts:
        return
    decoder = codecs.getincrementaldecoder("utf-8")()
    offset, line, start = 0, 1, True
    try:
        with corpus.open() as file:
            while True:
                chunk = file.read(_CHUNK)
                seen(chunk)
                before = offset - len(decoder.getstate()[0])  # where the decoder's input starts
                try:
                    text = decoder.decode(chunk, final=not chunk)
                except UnicodeDecodeError as error:
                    at, line = before + error.start, line + error.object[: error.start].count(b"\n")
                    utf16 = at == 0 and error.object[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
                    charset = "UTF-16" if utf16 else "LATIN1"
                    raise DataError(
                        f"{corpus.label} is not UTF-8 text: byte 0x{error.object[error.start]:02X} at offset {at:,}, "
                        f"line {line:,}; convert it, for example with iconv -f {charset} -t UTF-8"
                    ) from None
                if (at := text.find("\0")) >= 0:
                    at, line = before + len(text[:at].encode()), line + text[:at].count("\n")
                    raise DataError(
                        f"{corpus.label} is not text: byte 0x00 at offset {at:,}, line {line:,}; expected {_TEXT} "
                        "(token ids are data.kind: tokens)"
                    )
                offset += len(chunk)
                line += chunk.count(b"\n")
                if start and text:
                    text, start = text.removeprefix("\ufeff"), False
                if text:
                    yield text
                if not chunk:
                    return
    except OSError as error:
        raise DataError(f"{corpus.label} can't be read ({reason(error)})") from None
