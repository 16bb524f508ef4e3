"""Characters and bytes as ids, there and back, and what each tokenizer refuses; BPE is in test_bpe.py."""

import json
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from data import DataError
from data.tokenizer import ByteTokenizer, CharTokenizer, from_json, token_dtype

ABC, BYTES = CharTokenizer("\n abc"), ByteTokenizer()
RANGES = [(0x20, 0x7E), (0xA0, 0x2FF), (0x4E00, 0x4FFF), (0x1F300, 0x1F5FF)]


def message_of(call: Callable[[Any], object], argument: Any) -> str:
    with pytest.raises(DataError) as error:
        call(argument)
    return str(error.value)


def test_ids_by_hand():
    for tokenizer, text, expected, size in (
        (ABC, "cab\n a", [4, 2, 3, 0, 1, 2], 5),
        (BYTES, "aé\r\n", [97, 0xC3, 0xA9, 13, 10], 256),
        (ABC, "", [], 5),
        (BYTES, "", [], 256),
    ):
        ids = tokenizer.encode(text)
        assert ids.tolist() == expected and ids.dtype == np.uint8 and tokenizer.vocab_size == size
        assert tokenizer.decode(ids) == tokenizer.decode(expected) == text
    assert BYTES.decode([97, 0xC3, 98]) == "a\ufffdb"


@pytest.mark.parametrize("seed", range(20))
def test_decode_undoes_encode(seed):
    draw = random.Random(seed)
    text = "".join(chr(draw.randint(*draw.choice(RANGES))) for _ in range(seed * 37))
    for tokenizer in (CharTokenizer("".join(sorted(set(text + "x")))), BYTES):
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == tokenizer.decode(ids.tolist()) == text


def test_long_texts_are_encoded_in_slices_that_join(wording):
    text = "abc" * 200_001
    np.testing.assert_array_equal(ABC.encode(text), np.tile([2, 3, 4], 200_001))
    message = message_of(ABC.encode, text + "!")
    assert " 600,003 " in message
    wording(message)


def test_the_dtype_is_the_smallest_that_fits_and_the_limit_is_stated(wording):
    for size, dtype in {1: "u1", 256: "u1", 257: "u2", 65_536: "u2", 65_537: "u4"}.items():
        assert token_dtype(size) == np.dtype(dtype)
    vocab = "".join(map(chr, range(0x10000, 0x10000 + 65_536)))
    ids = CharTokenizer(vocab).encode(vocab[-1])
    assert ids.tolist() == [65_535] and ids.dtype == np.uint16
    for bad in (vocab + chr(0x10000 + 65_536), "", "ba", "aab"):
        wording(message_of(CharTokenizer, bad), "tokenizer")


@pytest.mark.parametrize(
    ("text", "place"),
    [("ab?", 2), ("A", 0), ("a\tb", 1), ("bâ", 1), ("a\u0301", 1), ("a\ud800", 1), ("\U0001f600?", 0)],
    ids=lambda x: ascii(x),
)
def test_a_foreign_character_is_named_with_its_place_and_what_there_is(text, place, wording):
    message = message_of(ABC.encode, text)
    assert f"(U+{ord(text[place]):04X})" in message and f" {place} " in message
    wording(message)


def test_characters_that_no_tokenizer_takes(wording):
    vocab = "".join(map(chr, range(0x4E00, 0x4E00 + 130)))
    message = message_of(CharTokenizer(vocab).encode, "a")
    assert f"'{vocab[:100]}'" in message
    wording(message, volatile=vocab[:100])
    wording(message_of(BYTES.encode, "ok \udc80"))


@pytest.mark.parametrize(
    "ids", [[300], [-1], [0, 300], np.array([2**40]), [0.5], [[1]], [True]], ids=lambda ids: str(list(ids))
)
def test_other_ids_are_refused(ids, wording):
    for tokenizer in (ABC, BYTES):
        wording(message_of(tokenizer.decode, ids))


def test_token_text_fits_in_a_table(wording):
    assert [ABC.token_text(i) for i in range(3)] == ["'\\n'", "' '", "'a'"]
    assert CharTokenizer("a\u0301").token_text(1) == "'\\u0301'"
    shown = ["'\\n'", "'A'", "'\\x7f'", "0x80", "0xFF"]
    assert [BYTES.token_text(i) for i in (10, 65, 0x7F, 0x80, 255)] == shown
    wording(message_of(ABC.token_text, 5))


def test_json_returns_an_equal_tokenizer_and_nothing_else_does(wording):
    for tokenizer in (ABC, BYTES, CharTokenizer("\x00é😀")):
        assert from_json(json.loads(json.dumps(tokenizer.to_json()))) == tokenizer
    for data in (
        {},
        {"kind": "bpe"},
        {"kind": "bpe", "merges": ["a b"]},
        {"model": {}},
        {"model": {"type": "WordPiece", "vocab": {}}},
        ["kind"],
        None,
        {"kind": "char"},
        {"kind": "char", "vocab": 3},
        {"kind": "byte", "n": 1},
    ):
        wording(message_of(from_json, data), "tokenizer")
