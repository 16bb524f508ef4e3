"""Corpora: one or several files of text, located or downloaded, and read as checked UTF-8."""

import codecs
import io
import os
import platform
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO, NamedTuple, cast

from . import DataError, reason
from .config import DataConfig
from .files import cache_folder, foreign, located

_MOST_FILES = 10_000
TEXT_FILE = "a UTF-8 text file"


class Download(NamedTuple):
    """A text that is downloaded, and the limits of that."""

    url: str
    name: str  # of the file in the cache
    sha256: str
    most: int  # bytes
    timeout: Any = 10  # seconds without an answer
    deadline: float = 300  # seconds from the first bytes to the last


SHAKESPEARE = Download(
    "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
    "tinyshakespeare.txt",
    "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
    most=2**24,  # sixteen times what it has
)


@dataclass(frozen=True)
class Part:
    """A file of a corpus, or bytes in memory."""

    label: str  # start of its error messages
    content: Path | bytes

    def open(self) -> BinaryIO:
        return io.BytesIO(self.content) if isinstance(self.content, bytes) else open(self.content, "rb")


@dataclass(frozen=True)
class Corpus:
    """Parts that are read one after the other, as often as needed."""

    name: str
    label: str  # start of its error messages
    parts: tuple[Part, ...]
    note: str = ""  # in front of its size, for people
    left_out: str = ""  # behind its size: the number of files that were left out because a name begins with a dot

    def changed(self) -> DataError:
        """The error for a second pass that reads other bytes than the first one."""
        return DataError(f"{self.label} changed while it was read; start again when it is complete")


def find(config: DataConfig) -> Corpus:
    """The corpus that the config names; shakespeare is downloaded at its first use. Raises DataError."""
    if config.path is None:
        if config.corpus == "shakespeare":
            name, content, note = "shakespeare", downloaded(SHAKESPEARE), ""
        else:
            name, content, note = "python-docs", _python_docs(), f"Python {platform.python_version()}, "
        return Corpus(name, f"data.corpus: {name}", (Part(f"data.corpus: {name}", content),), note)
    label, note, left_out = f"data.path: {config.path!r}", "", ""
    if (several := _several(config.path)) is None:
        files = [config.path]
    else:
        files, hidden = several
        left_out = f"; {hidden:,} hidden file{'s' if hidden > 1 else ''} left out" if hidden else ""
        if not files:
            parents = reversed(Path(config.path).expanduser().parents)
            missing = next((str(folder) for folder in parents if not folder.exists()), "*")
            lost = "" if any(mark in missing for mark in "*?") else f"; its folder {missing!r} does not exist"
            wanted = f"expected {TEXT_FILE}, or a folder or pattern of them"
            raise DataError(f"{label} holds no .txt file; {wanted}{left_out}{lost}")
        if len(files) > _MOST_FILES:
            raise DataError(f"{label} has more than {_MOST_FILES:,} files; put them into fewer")
        note = f"{len(files):,} file{'s' if len(files) > 1 else ''}, "
    labels = [f"data.path: {file!r}" for file in files]
    parts = (Part(each, located(file, each, TEXT_FILE)) for file, each in zip(files, labels, strict=True))
    return Corpus(config.path, label, tuple(parts), note, left_out)


def _several(where: str) -> tuple[list[str], int] | None:
    """The files below a folder (.txt) or of a pattern with * or ?, sorted, and the number of hidden ones left out.

    None for the path of one file: whatever exists is no pattern. The leading folders of a pattern that exist are taken
    as they are, brackets and all. At most _MOST_FILES + 1 files.
    """
    files, hidden = [], 0
    try:
        path = Path(where).expanduser()
        if path.is_dir():
            root, pattern = path, "**/*.txt"
        elif path.exists() or foreign(where) or not any(mark in where for mark in "*?"):
            return None
        else:
            names = list(path.relative_to(path.anchor).parts)
            root = Path(path.anchor)
            while (root / names[0]).exists():
                root /= names.pop(0)
            pattern = "/".join(names)
        for file in root.glob(pattern):  # whose ** does not follow links: two to the folder itself would never end
            if not file.is_file():
                continue
            if any(name.startswith(".") for name in file.relative_to(root).parts):
                hidden += 1
            elif len(files) > _MOST_FILES:
                break
            else:
                files.append(str(file))
    except (OSError, ValueError, RuntimeError):  # `located` has the message
        return None
    return sorted(files), hidden


def _python_docs() -> bytes:
    """Python's manual: real text that every CPython carries. It differs by Python version.

    Its topics repeat one another, a fifth of the text; only the first copy of a paragraph is kept, since otherwise a
    twelfth of the held-out windows would be trained on. Raises DataError for a Python without it.
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


def downloaded(wanted: Download) -> Path:
    """The file of Tiny Shakespeare, downloaded at its first use and checked at every one. Raises DataError."""
    import pooch

    def download(url: str, file: str, _: Any) -> None:
        end = time.monotonic() + wanted.deadline

        def limit(count: int) -> None:
            if os.path.getsize(file) > wanted.most:
                raise OSError(f"it sent more than {wanted.most:,} bytes")
            if time.monotonic() > end:
                raise OSError(f"it was not all there after {wanted.deadline:g} s")

        # A progress bar looks at each chunk, and chunks are small, so that the deadline holds while bytes trickle in.
        bar: Any = SimpleNamespace(total=0, update=limit, reset=lambda: None, close=lambda: None)
        plain = {"Accept-Encoding": "identity"}
        pooch.HTTPDownloader(bar, chunk_size=32, timeout=wanted.timeout, headers=plain)(url, file, None)

    target = cache_folder() / wanted.name
    advice = f"put the right file at {str(target)!r}, or set data.path to a text file of your own"
    pooch.get_logger().setLevel("CRITICAL")
    try:
        checksum, downloader = f"sha256:{wanted.sha256}", cast(Any, download)  # pooch annotates it wrongly
        return Path(pooch.retrieve(wanted.url, checksum, target.name, target.parent, downloader=downloader))
    except OSError as error:
        raise DataError(
            f"data.corpus: shakespeare can't be fetched from {wanted.url} ({reason(error)}); without a network {advice}"
        ) from None
    except ValueError:
        raise DataError(
            f"data.corpus: what {wanted.url} sent is not Tiny Shakespeare (expected SHA-256 {wanted.sha256[:12]}...), "
            f"and was not kept; {advice}"
        ) from None


def texts(corpus: Corpus, digest: Any = None, chunk_bytes: int = 2**20) -> Iterator[str]:
    """The text in pieces of bounded size, without byte order marks, line ends as they are; `digest` gets all bytes.

    Raises DataError when a part cannot be read or is not UTF-8 text.
    """
    for part in corpus.parts:
        yield from _texts(part, digest, chunk_bytes)


def _texts(part: Part, digest: Any, chunk_bytes: int) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8")()
    offset, line, start = 0, 1, True
    try:
        with part.open() as file:
            while True:
                chunk = file.read(chunk_bytes)
                if digest is not None:
                    digest.update(chunk)
                before = offset - len(decoder.getstate()[0])  # where the decoder's input starts
                try:
                    text = decoder.decode(chunk, final=not chunk)
                except UnicodeDecodeError as error:
                    at, line = before + error.start, line + error.object[: error.start].count(b"\n")
                    byte = error.object[error.start]
                    marked = at == 0 and error.object[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
                    advice = f"convert it, for example with iconv -f {'UTF-16' if marked else 'LATIN1'} -t UTF-8"
                    if isinstance(part.content, Path) and part.content.suffix in (".bin", ".npy"):
                        advice = "token ids are data.kind: tokens"
                    place = f"byte 0x{byte:02X} at offset {at:,}, line {line:,}"
                    raise DataError(f"{part.label} is not UTF-8 text: {place}; {advice}") from None
                if (at := text.find("\0")) >= 0:
                    at, line = before + len(text[:at].encode()), line + text[:at].count("\n")
                    raise DataError(
                        f"{part.label} is not text: byte 0x00 at offset {at:,}, line {line:,}; expected {TEXT_FILE} "
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
        raise DataError(f"{part.label} can't be read ({reason(error)})") from None
