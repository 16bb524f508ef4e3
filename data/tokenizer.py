"""Characters or bytes as token ids, and back. A tokenizer is a frozen value that goes to JSON and comes back."""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from jaxtyping import Int, UInt

CHAR_LIMIT = 65_536
_CODE_POINTS = 0x110000
_SLICE = 1 << 18  # characters encoded at a time: the work arrays stay in the processor's cache


class DataError(ValueError):
    """Data that can't be used as the config asks. The message is one line: where, what, and what would do."""


class Tokenizer(Protocol):
    """What maps text to ids in [0, vocab_size) and back."""

    @property
    def vocab_size(self) -> int: ...

    def encode(self, text: str) -> UInt[np.ndarray, " n"]:
        """Ids in the smallest unsigned dtype that holds the vocabulary. Raises DataError for a foreign character."""
        ...

    def decode(self, ids: Sequence[int] | Int[np.ndarray, " n"]) -> str:
        """The text of these ids. Raises DataError for an id outside [0, vocab_size)."""
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

    def encode(self, text: str) -> UInt[np.ndarray, " n"]:
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

    def decode(self, ids: Sequence[int] | Int[np.ndarray, " n"]) -> str:
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

    def encode(self, text: str) -> UInt[np.ndarray, " n"]:
        try:
            return np.frombuffer(text.encode("utf-8"), np.uint8)
        except UnicodeEncodeError as error:
            code = ord(text[error.start])
            raise DataError(
                f"character {ascii(text[error.start])} (U+{code:04X}) at position {error.start} "
                "is a lone surrogate, which has no UTF-8 form"
            ) from None

    def decode(self, ids: Sequence[int] | Int[np.ndarray, " n"]) -> str:
        """A sequence of bytes that isn't UTF-8, such as a sampled one, gives U+FFFD in place of what is broken."""
        return _checked(ids, 256).astype(np.uint8).tobytes().decode("utf-8", "replace")

    def token_text(self, token: int) -> str:
        byte = int(_checked([token], 256)[0])
        return printable(chr(byte)) if byte < 0x80 else f"0x{byte:02X}"

    def to_json(self) -> dict[str, Any]:
        return {"kind": "byte"}


def from_json(data: dict[str, Any]) -> Tokenizer:
    """The tokenizer that `to_json` wrote. Raises DataError for anything else."""
    match data:
        case {"kind": "char", "vocab": str(vocab), **rest} if not rest:
            return CharTokenizer(vocab)
        case {"kind": "byte", **rest} if not rest:
            return ByteTokenizer()
    raise DataError(
        f"tokenizer: expected a char tokenizer with its vocab, or a byte tokenizer, got {str(data)[:100]!r}"
    )


def token_dtype(vocab_size: int) -> np.dtype:
    """The smallest unsigned dtype that holds ids below vocab_size."""
    return np.min_scalar_type(vocab_size - 1)


def code_points(text: str) -> UInt[np.ndarray, " n"]:
    """uint32 code points, one a character; a lone surrogate passes as itself."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")


def printable(character: str) -> str:
    """A character in quotes; escaped when it would not show, or would stick to its neighbour."""
    return ascii(character) if unicodedata.category(character).startswith("M") else repr(character)


def _listing(vocab: str, at_most: int = 100) -> str:
    return repr(vocab) if len(vocab) <= at_most else f"{vocab[:at_most]!r} and {len(vocab) - at_most:,} more"


def _checked(ids: Sequence[int] | np.ndarray, vocab_size: int) -> Int[np.ndarray, " n"]:
    array = np.asarray(ids, dtype=None if len(ids) else np.int64)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise DataError(f"token ids must be a list of integers, got shape {array.shape} of {array.dtype}")
    outside = (array < 0) | (array >= vocab_size)
    if outside.any():
        raise DataError(f"token ids must be 0 to {vocab_size - 1}, got {array[outside.argmax()]}")
    return array
