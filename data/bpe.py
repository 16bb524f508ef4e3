"""Byte-pair merges of a corpus, learnt from its training part alone, and cached.

Held-out text must be as new to the tokenizer as to the network: merges learnt from it would flatter the held-out loss.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import groupby, takewhile
from operator import itemgetter

from .corpus import Corpus, texts
from .files import cache_folder, json_of, replacing
from .tokenizer import PIECE, BpeTokenizer, hf_tokenizers, pieces

_LEAST = 2  # occurrences of a pair: merging one that occurs once shortens nothing but that place
_STREAM = 1 << 20  # characters encoded at a time, PIECE by PIECE on as many threads as there are


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
