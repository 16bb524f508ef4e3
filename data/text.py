"""Tokens of a text corpus: checked and counted, encoded, split, placed.

A corpus is read in passes of bounded memory, so that a file may be larger than the machine's memory: one pass checks
and counts, one encodes; for bpe, two between them learn the merges and count the tokens. Caches live in the folder
`DELTAFLOW_CACHE`, or else in the user's cache folder.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from . import DataError, reason
from .bpe import learn_from, parts
from .config import BPE_VOCAB, DataConfig
from .corpus import Corpus, find, texts
from .files import MappedFile, cache_folder, mapped_npy, replacing
from .tokenizer import CHAR_LIMIT, ByteTokenizer, CharTokenizer, Tokenizer, code_points, token_dtype
from .tokens import Windows, check_lengths, held_out_of, placement_of, split


def open_text(config: DataConfig) -> Windows:
    """The corpus that the config names, as tokens. Raises DataError."""
    corpus = find(config)
    unit = "bytes" if config.tokenizer == "byte" else "characters"
    sha256, n, vocab = _scan(corpus, config.tokenizer)
    name, note, cut = f"{corpus.name} ({corpus.note}{n:,} {unit})", corpus.left_out, None
    if config.tokenizer == "bpe":
        # At the very character where tokenizer char splits, so that both hold out the same text.
        held_out = held_out_of(config, n)
        cut, wanted = n - held_out, BPE_VOCAB if config.vocab_size is None else config.vocab_size
        tokenizer, n_train, n_val = learn_from(corpus, sha256, n, cut, wanted)
        check_lengths(config, corpus.label, n_train, n_val, "tokens")
        n = n_train + n_val
        note += f", {held_out / n_val:.3g} characters a held-out token"
        if tokenizer.vocab_size < wanted:
            note += f"; data.vocab_size {wanted} is out of reach: no pair of tokens is left that occurs twice"
    else:
        tokenizer = CharTokenizer(vocab) if config.tokenizer == "char" else ByteTokenizer()
        n_train = split(config, corpus.label, n, unit)
        if tokenizer.vocab_size < 2:
            raise DataError(f"{corpus.label} holds no character but {vocab!r}, and so nothing to learn")
    encoding = _Encoding(corpus, sha256, tokenizer, n, cut)
    placement = placement_of(config, n, encoding.dtype)
    tokens, mapped = encoding.on_host() if placement == "host" else (encoding.in_memory(), None)
    halves = (tokens[:n_train], tokens[n_train:])
    return Windows(*halves, sha256, name, placement, config.context, tokenizer.vocab_size, mapped, tokenizer, note)


def _scan(corpus: Corpus, tokenizer: str) -> tuple[str, int, str]:
    """(sha256 of the bytes, length in bytes for tokenizer byte, else in characters, vocabulary for tokenizer char).

    Byte order marks do not count. Raises DataError when the corpus is empty, not UTF-8, or has too many characters.
    """
    digest, n, present = hashlib.sha256(), 0, np.zeros(0x110000, bool)
    for text in texts(corpus, digest):
        n += len(text.encode() if tokenizer == "byte" else text)
        if tokenizer == "char":
            present[code_points(text)] = True
    if not n:
        raise DataError(f"{corpus.label} is empty")
    vocab = "".join(map(chr, np.flatnonzero(present)))
    if len(vocab) > CHAR_LIMIT:
        raise DataError(
            f"{corpus.label} has {len(vocab):,} different characters, at most {CHAR_LIMIT:,} can be tokens; "
            "set data.tokenizer: byte"
        )
    return digest.hexdigest(), n, vocab


@dataclass(frozen=True)
class _Encoding:
    """The tokens of a corpus, in the order of its text."""

    corpus: Corpus
    sha256: str  # of the corpus when it was scanned
    tokenizer: Tokenizer
    n: int  # tokens
    cut: int | None  # characters to train on, where no token of bpe spans the split

    @property
    def dtype(self) -> np.dtype:
        return token_dtype(self.tokenizer.vocab_size)

    def in_memory(self) -> NDArray[np.unsignedinteger]:
        tokens, done = np.empty(self.n, self.dtype), 0
        for part in self._parts():
            tokens[done : done + len(part)] = part
            done += len(part)
        tokens.flags.writeable = False
        return tokens

    def on_host(self) -> tuple[NDArray[np.unsignedinteger], MappedFile]:
        """Memory-mapped tokens: the file itself when its bytes are the tokens, else a cached .npy made once."""
        file = self.corpus.parts[0].content
        if isinstance(self.tokenizer, ByteTokenizer) and len(self.corpus.parts) == 1 and isinstance(file, Path):
            mapped = MappedFile.of(self.corpus.label, file)
            mark = mapped.status.st_size - self.n  # bytes of a byte order mark
            if mark not in (0, 3):
                raise self.corpus.changed()
            try:
                return np.memmap(file, np.uint8, "r", offset=mark, shape=(self.n,)), mapped
            except (OSError, ValueError) as error:
                raise DataError(f"{self.corpus.label} can't be memory-mapped ({reason(error)})") from None
        settings = json.dumps([self.sha256, self.tokenizer.to_json(), self.cut], sort_keys=True)
        path = cache_folder() / "tokens" / f"{hashlib.sha256(settings.encode()).hexdigest()}.npy"
        try:
            if (tokens := self._load(path)) is None:
                header = {"descr": np.lib.format.dtype_to_descr(self.dtype), "fortran_order": False, "shape": (self.n,)}
                with replacing(path) as out:  # plain writes: a full disk kills a process that writes to a map
                    np.lib.format.write_array_header_1_0(out, header)
                    for part in self._parts():
                        out.write(part.tobytes())
                tokens = self._load(path)
        except OSError as error:
            raise DataError(
                f"the token cache {str(path.parent)!r} can't be used ({reason(error)}); set DELTAFLOW_CACHE to a "
                "folder with room, or data.placement: device"
            ) from None
        assert tokens is not None
        return tokens, MappedFile.of(f"the token cache {str(path)!r}", path)

    def _load(self, path: Path) -> np.ndarray | None:
        """The cached tokens; None when there are none, or the file is damaged."""
        try:
            tokens = mapped_npy(path)
        except (FileNotFoundError, ValueError):
            return None
        return tokens if tokens.dtype == self.dtype and tokens.shape == (self.n,) else None

    def _parts(self) -> Iterator[NDArray[np.unsignedinteger]]:
        """All tokens, in parts. Raises DataError when the corpus is no longer the one that was scanned."""
        digest, done = hashlib.sha256(), 0
        whole = texts(self.corpus, digest)
        for text in whole if self.cut is None else (piece for _, piece in parts(whole, self.cut)):
            try:
                part = self.tokenizer.encode(text)
            except DataError:
                break
            done += len(part)
            if done > self.n:
                break
            yield part
        if digest.hexdigest() != self.sha256:
            raise self.corpus.changed()
