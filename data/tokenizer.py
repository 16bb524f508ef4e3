"""Characters, bytes or merged bytes as token ids, and back. A tokenizer is a frozen value that goes to JSON and comes
back."""

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from .errors import DataError

CHAR_LIMIT = 65_536
_CODE_POINTS = 0x110000
_SLICE = 1 << 18  # characters encoded at a time: the work arrays stay in the processor's cache


class Tokenizer(Protocol):
    """What maps text to ids in [0, vocab_size) and back."""

    @property
    def vocab_size(self) -> int: ...

    def encode(self, text: str) -> NDArray[np.unsignedinteger]:
        """Ids [n], of the smallest unsigned dtype for the vocabulary. Raises DataError for a foreign character."""
        ...

    def decode(self, ids: Sequence[int] | NDArray[np.integer]) -> str:
        """The text of these ids [n]. Raises DataError for an id outside [0, vocab_size)."""
        ...

    def token_text(self, token: int) -> str:
        """One token, printable on one line, for tables."""
        ...

    def to_json(self) -> dict[str, Any]: ...


@dataclass(frozen=True)
class CharTokenizer:
    r"""One token a character; the id is the character's place in `vocab`, which is sorted and has no repeats.

    >>> tokenizer = CharTokenizer("\nabc")
    >>> tokenizer.encode("cab\n").tolist(), tokenizer.decode([1, 2, 3])
    ([3, 1, 2, 0], 'abc')
    """

    vocab: str

    def __post_init__(self) -> None:
        if self.vocab != "".join(sorted(set(self.vocab))):
            raise DataError(f"tokenizer: vocab must be sorted and without repeats, got {_listing(self.vocab)}")
        if not 1 <= len(self.vocab) <= CHAR_LIMIT:
            raise DataError(f"tokenizer: vocab must have 1 to {CHAR_LIMIT:,} characters, got {len(self.vocab):,}")

    @property
    def vocab_size(self) -> int:
        return len(self.vocab)

    @cached_property
    def _id_of(self) -> np.ndarray:
        """[0x110000] int32: the id of each code point, -1 where the vocabulary has none."""
        table = np.full(_CODE_POINTS, -1, np.int32)
        table[code_points(self.vocab)] = np.arange(len(self.vocab))
        return table

    def encode(self, text: str) -> NDArray[np.unsignedinteger]:
        ids = np.empty(len(text), token_dtype(self.vocab_size))
        for start in range(0, len(text), _SLICE):
            part = self._id_of[code_points(text[start : start + _SLICE])]
            if part.min() < 0:
                raise self._foreign(text, start + int(part.argmin()))
            ids[start : start + _SLICE] = part
        return ids

    def _foreign(self, text: str, position: int) -> DataError:
        character = text[position]
        relatives = (character.swapcase(), unicodedata.normalize("NFKD", character)[:1])
        near = [c for c in relatives if c != character and len(c) == 1 and c in self.vocab]
        hint = f"{printable(near[0])} is; " if near else ""
        return DataError(
            f"character {printable(character)} (U+{ord(character):04X}) at position {position:,} is not in the corpus; "
            f"{hint}the corpus has {len(self.vocab):,} characters: {_listing(self.vocab)}"
        )

    def decode(self, ids: Sequence[int] | NDArray[np.integer]) -> str:
        points = code_points(self.vocab)[_checked(ids, self.vocab_size)]
        return points.astype("<u4").tobytes().decode("utf-32-le", "surrogatepass")

    def token_text(self, token: int) -> str:
        return printable(self.vocab[_checked([token], self.vocab_size)[0]])

    def to_json(self) -> dict[str, Any]:
        return {"kind": "char", "vocab": self.vocab}


@dataclass(frozen=True)
class ByteTokenizer:
    """One token a byte of the text's UTF-8 form; 256 of them whatever the corpus.

    >>> ByteTokenizer().encode("aé").tolist()
    [97, 195, 169]
    """

    @property
    def vocab_size(self) -> int:
        return 256

    def encode(self, text: str) -> NDArray[np.unsignedinteger]:
        return np.frombuffer(utf8(text), np.uint8)

    def decode(self, ids: Sequence[int] | NDArray[np.integer]) -> str:
        """A sequence of bytes that isn't UTF-8, such as a sampled one, gives U+FFFD in place of what is broken."""
        return _checked(ids, 256).astype(np.uint8).tobytes().decode("utf-8", "replace")

    def token_text(self, token: int) -> str:
        return legible(bytes(_checked([token], 256).tolist()))

    def to_json(self) -> dict[str, Any]:
        return {"kind": "byte"}


@dataclass(frozen=True)
class BpeTokenizer:
    """Bytes, and tokens merged from two others: byte-pair encoding (Sennrich et al. 2016, 1508.07909) of UTF-8, as in
    GPT-2 (Radford et al. 2019, "Language models are unsupervised multitask learners", section 2.2).

    A byte is its own id, the first merge makes token 256. Text is first cut into words by GPT-2's pattern, a space
    going with the word behind it, and no token spans two words. `merges` are "left right" in the order in which they
    apply, written in GPT-2's alphabet of one character a byte (a space is Ġ). Two merges may make the same token.

    Encoding needs the package `tokenizers` (extra `[bpe]`). Raises DataError for merges that can't be.

    >>> BpeTokenizer(("h e", "Ġ he")).decode([256, 257, 33])
    'he he!'
    """

    merges: tuple[str, ...]

    def __post_init__(self) -> None:
        _ = self._ids  # which checks them

    @cached_property
    def _ids(self) -> dict[str, int]:
        """The id of each token as it is written in a merge."""
        ids = {character: byte for byte, character in enumerate(ALPHABET)}
        for merge in self.merges:
            left, _, right = merge.partition(" ")
            if left not in ids or right not in ids:
                raise DataError(f"tokenizer: expected a merge of two tokens before it, got {merge!r}")
            ids.setdefault(left + right, len(ids))
        return ids

    @cached_property
    def _tokens(self) -> list[bytes]:
        return [bytes(map(ALPHABET.index, token)) for token in self._ids]

    @cached_property
    def _encoder(self) -> Any:
        package = hf_tokenizers()
        merges = [tuple(merge.split(" ")) for merge in self.merges]
        encoder = package.Tokenizer(package.models.BPE(self._ids, merges))
        encoder.pre_tokenizer = package.pre_tokenizers.ByteLevel(add_prefix_space=False)
        return encoder

    @property
    def vocab_size(self) -> int:
        return len(self._ids)

    def encode(self, text: str) -> NDArray[np.unsignedinteger]:
        utf8(text)
        dtype = token_dtype(self.vocab_size)
        parts = self._encoder.encode_batch_fast(list(pieces([text], PIECE)))
        return np.concatenate([np.empty(0, dtype), *(np.array(part.ids, dtype) for part in parts)])

    def decode(self, ids: Sequence[int] | NDArray[np.integer]) -> str:
        """As of bytes: U+FFFD in place of what is not UTF-8."""
        return b"".join(self._tokens[index] for index in _checked(ids, self.vocab_size)).decode("utf-8", "replace")

    def token_text(self, token: int) -> str:
        return legible(self._tokens[_checked([token], self.vocab_size)[0]])

    def to_json(self) -> dict[str, Any]:
        return {"kind": "bpe", "merges": list(self.merges)}


def _alphabet() -> str:
    shown = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return "".join(chr(byte if byte in shown else next(others)) for byte in range(256))


ALPHABET = _alphabet()  # GPT-2's: byte b is written ALPHABET[b], itself where that shows
PIECE = 1 << 16  # characters that the package is given at a time: its own records of them are many times as large
# The last end of a word in sight. To Python \x1c to \x1f are spaces too, to GPT-2's pattern they are not.
_WORD_END = re.compile(r".*\S(?=[^\S\x1c-\x1f])", re.DOTALL)


def pieces(texts: Iterable[str], size: int) -> Iterator[str]:
    """The text in pieces of at most `size` characters, the same ones however it comes, which are encoded apart as they
    would be together.

    They end where a word does and space follows: no word of GPT-2's pattern goes on there, and none looks back. Only
    what has no such place within `size` characters is cut elsewhere.

    >>> list(pieces(["one t", "wo  three"], 8))
    ['one two', '  three']
    """
    rest = ""
    for text in texts:
        rest += text
        start = 0
        while len(rest) - start > size:
            found = _WORD_END.match(rest, start, start + size + 1)
            end = found.end() if found else start + size
            yield rest[start:end]
            start = end
        rest = rest[start:]
    if rest:
        yield rest


def hf_tokenizers() -> Any:
    """The package of that name. Raises DataError without it."""
    try:
        import tokenizers
    except ImportError:
        raise DataError(
            "data.tokenizer: bpe needs tokenizers; install it with pip install tokenizers, or -e '.[bpe]'"
        ) from None
    return tokenizers


def from_json(data: dict[str, Any]) -> Tokenizer:
    """The tokenizer that `to_json` wrote. Raises DataError for anything else."""
    match data:
        case {"kind": "char", "vocab": str(vocab), **rest} if not rest:
            return CharTokenizer(vocab)
        case {"kind": "byte", **rest} if not rest:
            return ByteTokenizer()
        case {"kind": "bpe", "merges": [*merges], **rest} if not rest and all(isinstance(m, str) for m in merges):
            return BpeTokenizer(tuple(merges))
    raise DataError(
        "tokenizer: expected a char tokenizer with its vocab, a bpe tokenizer with its merges, or a byte tokenizer, "
        f"got {str(data)[:100]!r}"
    )


def token_dtype(vocab_size: int) -> np.dtype:
    """The smallest unsigned dtype that holds ids below vocab_size."""
    return np.min_scalar_type(vocab_size - 1)


def code_points(text: str) -> NDArray[np.unsignedinteger]:
    """uint32 code points [n], one a character; a lone surrogate passes as itself."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")


def utf8(text: str) -> bytes:
    """Raises DataError for a character that has no bytes."""
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        raise DataError(
            f"character {ascii(text[error.start])} (U+{code:04X}) at position {error.start} "
            "is a lone surrogate, which has no UTF-8 form"
        ) from None


def printable(text: str) -> str:
    """Text in quotes; escaped where it would not show, or would stick to its neighbour."""
    return ascii(text) if unicodedata.category(text[0]).startswith("M") else repr(text)


def legible(token: bytes) -> str:
    """The text of a token; its bytes when they are a part of a character.

    >>> [legible(token) for token in (b" the", b"\\n", b"\\xc3\\xa9", b"\\xc3", b" \\xc3")]
    ["' the'", "'\\\\n'", "'é'", '0xC3', "b' \\\\xc3'"]
    """
    try:
        return printable(token.decode("utf-8"))
    except UnicodeDecodeError:
        return f"0x{token.hex().upper()}" if min(token) >= 0x80 else repr(token)


def _listing(vocab: str, at_most: int = 100) -> str:
    return repr(vocab) if len(vocab) <= at_most else f"{vocab[:at_most]!r} and {len(vocab) - at_most:,} more"


def _checked(ids: Sequence[int] | np.ndarray, vocab_size: int) -> NDArray[np.integer]:
    array = np.asarray(ids, dtype=None if len(ids) else np.int64)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise DataError(f"token ids must be a list of integers, got shape {array.shape} of {array.dtype}")
    outside = (array < 0) | (array >= vocab_size)
    if outside.any():
        raise DataError(f"token ids must be 0 to {vocab_size - 1}, got {array[outside.argmax()]}")
    return array
