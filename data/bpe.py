"""Byte-pair encoding: the tokenizer, and its merges, learnt from the training part of a corpus alone, and cached.

Held-out text must be as new to the tokenizer as to the network: merges learnt from it would flatter the held-out loss.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby, takewhile
from operator import itemgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import DataError, reason
from .corpus import Corpus, texts
from .files import cache_folder, json_of, replacing
from .tokenizer import BytesTokenizer, token_dtype, utf8

_LEAST = 2  # occurrences of a pair: merging one that occurs once shortens nothing but that place
_STREAM = 1 << 20  # characters encoded at a time, PIECE by PIECE on as many threads as there are
_SHOWN = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
_OTHERS = iter(range(0x100, 0x200))
# GPT-2's: byte b is written ALPHABET[b], itself where that is printable.
ALPHABET = "".join(chr(byte if byte in _SHOWN else next(_OTHERS)) for byte in range(256))
PIECE = 1 << 16  # characters that the package gets at a time: its own records of them are many times as large
# The last end of a word in sight. To Python \x1c to \x1f are spaces too, to GPT-2's pattern they are not.
_WORD_END = re.compile(r".*\S(?=[^\S\x1c-\x1f])", re.DOTALL)


@dataclass(frozen=True)
class BpeTokenizer(BytesTokenizer):
    """Byte-pair encoding of UTF-8 (Sennrich et al. 2016, 1508.07909), by the package `tokenizers` (extra `[bpe]`).

    As in GPT-2 (Radford et al. 2019, "Language models are unsupervised multitask learners", section 2.2), text is first
    cut into words, a space going with the word behind it, and no token spans two words; tokens are written in an
    alphabet of one character a byte (a space is Ġ).

    `data` is the package's own JSON (`Tokenizer.to_str`, tokenizer.json of Hugging Face): byte-level BPE without
    normalization, special tokens or dropout. Raises DataError for another one.
    """

    data: dict[str, Any]

    @staticmethod
    def of(merges: Iterable[tuple[str, str]]) -> "BpeTokenizer":
        """The tokenizer of merges in the order in which they apply. Each byte is its own id, the first merge is 256."""
        package, merges = hf_tokenizers(), list(merges)
        vocab = {character: byte for byte, character in enumerate(ALPHABET)}
        for left, right in merges:
            vocab.setdefault(left + right, len(vocab))  # two merges may make the same token
        library = package.Tokenizer(package.models.BPE(vocab, merges))
        library.pre_tokenizer = package.pre_tokenizers.ByteLevel(add_prefix_space=False)
        library.decoder = package.decoders.ByteLevel()
        return BpeTokenizer(json.loads(library.to_str()))

    def __post_init__(self) -> None:
        _ = self._tokens  # which checks them

    @cached_property
    def _tokens(self) -> list[bytes]:  # pyright: ignore[reportIncompatibleVariableOverride]
        match self.data:
            case {
                "truncation": None,
                "padding": None,
                "added_tokens": [],
                "normalizer": None,
                "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True},
                "post_processor": None,
                "model": {
                    "type": "BPE",
                    "dropout": None,
                    "continuing_subword_prefix": None,
                    "end_of_word_suffix": None,
                    "vocab": dict(vocab),
                    "merges": list(),
                },
            } if set(ALPHABET) <= vocab.keys() and "" not in vocab:
                by_id = {index: token for token, index in vocab.items() if type(index) is int}
                try:
                    return [bytes(map(ALPHABET.index, by_id[index])) for index in range(len(vocab))]
                except (KeyError, ValueError):
                    pass
        raise DataError(
            "tokenizer: expected byte-level BPE, with an id for each byte and without gaps, special tokens or dropout, "
            f"got {str(self.data)[:100]!r}"
        )

    @cached_property
    def library(self) -> Any:
        """The package's tokenizer. Raises DataError without the package, or for merges that it refuses."""
        try:
            return hf_tokenizers().Tokenizer.from_str(json.dumps(self.data))
        except DataError:
            raise
        except Exception as error:  # the package has no class for it
            raise DataError(f"tokenizer: {reason(error)}") from None

    def encode(self, text: str) -> NDArray[np.unsignedinteger]:
        utf8(text)
        dtype = token_dtype(self.vocab_size)
        parts = self.library.encode_batch_fast(list(pieces([text], PIECE)))
        return np.concatenate([np.empty(0, dtype), *(np.array(part.ids, dtype) for part in parts)])

    def to_json(self) -> dict[str, Any]:
        return self.data


def hf_tokenizers() -> Any:
    """The package `tokenizers`. Raises DataError without it."""
    try:
        import tokenizers
    except ImportError:
        raise DataError(
            "data.tokenizer: bpe needs tokenizers; install it with pip install tokenizers, or -e '.[bpe]'"
        ) from None
    return tokenizers


def pieces(texts: Iterable[str], size: int) -> Iterator[str]:
    """A text in pieces of at most `size` characters, which are encoded apart as they would be together.

    They do not depend on the parts in which the text comes. They end where a word does and space follows: no word of
    GPT-2's pattern continues there, and none looks back. Only a stretch of `size` characters without such a place is
    cut elsewhere.

    >>> list(pieces(["one t", "wo  three"], 8))
    ['one two', '  three']
    """
    rest = ""
    for text in texts:
        rest += text
        start = 0
        while len(rest) - start > size:
            match = _WORD_END.match(rest, start, start + size + 1)
            end = match.end() if match else start + size
            yield rest[start:end]
            start = end
        rest = rest[start:]
    if rest:
        yield rest


def learn(training: Iterable[str], vocab_size: int) -> BpeTokenizer:
    """The tokenizer of a text that comes in parts: 256 bytes, and merges up to `vocab_size` tokens or until every pair
    occurs once.

    The most frequent pair within words is merged first; among equally frequent ones the first in the order of GPT-2's
    alphabet, its own letters before merged tokens. So the same text gives the same merges.
    """
    package = hf_tokenizers()
    model = package.Tokenizer(package.models.BPE())
    model.pre_tokenizer = package.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = package.trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=_LEAST,
        show_progress=False,
        initial_alphabet=package.pre_tokenizers.ByteLevel.alphabet(),
    )
    # It holds a few hundred of the parts at a time, so small ones.
    model.train_from_iterator((piece for text in training for piece in pieces([text], PIECE)), trainer)
    return BpeTokenizer.of(map(tuple, json.loads(model.to_str())["model"]["merges"]))


def parts(whole: Iterable[str], cut: int) -> Iterator[tuple[bool, str]]:
    """(held out, part): a text for encoding, in parts of which none crosses the split, `cut` characters in."""

    def sides() -> Iterator[tuple[bool, str]]:
        left = cut
        for text in whole:
            before, behind = text[:left], text[left:]
            left -= len(before)
            if before:
                yield False, before
            if behind:
                yield True, behind

    for held_out, side in groupby(sides(), key=itemgetter(0)):
        yield from ((held_out, part) for part in pieces((text for _, text in side), _STREAM))


def learn_from(
    corpus: Corpus, sha256: str, characters: int, cut: int, vocab_size: int
) -> tuple[BpeTokenizer, int, int]:
    """The tokenizer of the first `cut` characters of a corpus, and its tokens to train on and held out.

    From the cache where the same was learnt before. Raises DataError.
    """
    settings = (sha256, characters, cut, vocab_size, _LEAST, hf_tokenizers().__version__)
    path = cache_folder() / "tokenizers" / f"{hashlib.sha256(repr(settings).encode()).hexdigest()}.json"
    with suppress(OSError, ValueError):  # nothing there, or damaged
        match json_of(path):
            case {"tokenizer": dict(data), "n_train": int(n_train), "n_val": int(n_val)}:
                return BpeTokenizer(data), n_train, n_val
    training = takewhile(lambda part: not part[0], parts(texts(corpus), cut))
    tokenizer = learn((text for _, text in training), vocab_size)
    digest, n = hashlib.sha256(), [0, 0]
    for held_out, text in parts(texts(corpus, digest), cut):
        n[held_out] += len(tokenizer.encode(text))
    if digest.hexdigest() != sha256:
        raise corpus.changed()
    content = {"tokenizer": tokenizer.data, "n_train": n[0], "n_val": n[1]}
    with suppress(OSError), replacing(path) as file:  # without a cache it is learnt again at the next start
        file.write(json.dumps(content, indent=1).encode())
    return tokenizer, n[0], n[1]
