"""The merges of a corpus, learnt from its training part alone, and kept beside the token cache.

Held-out text has no say in them: it has to be as new to the tokenizer as to the network, or the held-out loss would
flatter both.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import groupby, takewhile
from operator import itemgetter
from pathlib import Path
from typing import NamedTuple

from .corpus import Corpus, cache_folder, changed, replacing, texts
from .tokenizer import PIECE, BpeTokenizer, from_json, hf_tokenizers, pieces

_LEAST = 2  # times that a pair occurs: merging one that occurs once shortens nothing but that place
_STREAM = 1 << 20  # characters encoded at a time, PIECE by PIECE on as many threads as there are


class Learnt(NamedTuple):
    """A tokenizer, and what it makes of the corpus it was learnt from."""

    tokenizer: BpeTokenizer
    n_train: int  # tokens
    n_val: int


def learn(training: Iterable[str], vocab_size: int) -> BpeTokenizer:
    """The tokenizer of a text that comes in parts: 256 bytes, and merges up to `vocab_size` tokens or until every pair
    occurs once.

    The commonest pair within words is merged first; of equally common ones that which comes first in the order of
    GPT-2's alphabet, its own letters before what was merged of them. So the same text gives the same merges.
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
    return BpeTokenizer(tuple(" ".join(pair) for pair in json.loads(model.to_str())["model"]["merges"]))


def parts(whole: Iterable[str], cut: int) -> Iterator[tuple[bool, str]]:
    """(held out, part): a text for encoding, in parts of which none goes across the split, `cut` characters in."""

    def sided() -> Iterator[tuple[bool, str]]:
        left = cut
        for text in whole:
            before, behind = text[:left], text[left:]
            left -= len(before)
            if before:
                yield False, before
            if behind:
                yield True, behind

    for held_out, side in groupby(sided(), key=itemgetter(0)):
        yield from ((held_out, part) for part in pieces((text for _, text in side), _STREAM))


def learn_from(corpus: Corpus, sha256: str, characters: int, cut: int, vocab_size: int) -> Learnt:
    """What the first `cut` characters of a corpus give; from the cache when they gave it before. Raises DataError."""
    settings = (sha256, characters, cut, vocab_size, _LEAST, hf_tokenizers().__version__)
    key = hashlib.sha256(" ".join(map(str, settings)).encode()).hexdigest()
    path = cache_folder() / "tokenizers" / f"{key}.json"
    if (known := _load(path)) is not None:
        return known
    training = takewhile(lambda part: not part[0], parts(texts(corpus), cut))
    tokenizer = learn((text for _, text in training), vocab_size)
    digest, counts = hashlib.sha256(), [0, 0]
    for held_out, text in parts(texts(corpus, digest.update), cut):
        counts[held_out] += len(tokenizer.encode(text))
    if digest.hexdigest() != sha256:
        raise changed(corpus)
    found = Learnt(tokenizer, *counts)
    with suppress(OSError):  # then it is learnt again at the next start
        _store(path, found)
    return found


def _load(path: Path) -> Learnt | None:
    """What was stored there, or None when there is nothing or it is not what it should be."""
    try:
        match json.loads(path.read_bytes()):
            case {"tokenizer": dict(tokenizer), "n_train": int(n_train), "n_val": int(n_val)}:
                kept = from_json(tokenizer)
                return Learnt(kept, n_train, n_val) if isinstance(kept, BpeTokenizer) else None
    except (OSError, ValueError, RecursionError):
        pass
    return None


def _store(path: Path, found: Learnt) -> None:
    content = {"tokenizer": found.tokenizer.to_json(), "n_train": found.n_train, "n_val": found.n_val}
    with replacing(path) as file:
        file.write(json.dumps(content, indent=1).encode())
