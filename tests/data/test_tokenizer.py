"""Characters and bytes as ids, there and back, and what each tokenizer refuses; BPE is in test_bpe.py."""

import json
import random

import numpy as np
import pytest

from data import DataError
from data.tokenizer import ByteTokenizer, CharTokenizer, from_json, token_dtype

ABC, BYTES = CharTokenizer("\n abc"), ByteTokenizer()
RANGES = [(0x20, 0x7E), (0xA0, 0x2FF), (0x4E00, 0x4FFF), (0x1F300, 0x1F5FF)]
VOCAB = "".join(map(chr, range(0x4E00, 0x4E00 + 130)))


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


def test_long_texts_are_encoded_in_slices_that_join():
    text = "abc" * 200_001
    np.testing.assert_array_equal(ABC.encode(text), np.tile([2, 3, 4], 200_001))
    with pytest.raises(DataError, match=r"character '!' \(U\+0021\) at position 600,003 "):
        ABC.encode(text + "!")


def test_the_dtype_is_the_smallest_that_fits_and_the_limit_is_stated():
    for size, dtype in {1: "u1", 256: "u1", 257: "u2", 65_536: "u2", 65_537: "u4"}.items():
        assert token_dtype(size) == np.dtype(dtype)
    vocab = "".join(map(chr, range(0x10000, 0x10000 + 65_536)))
    ids = CharTokenizer(vocab).encode(vocab[-1])
    assert ids.tolist() == [65_535] and ids.dtype == np.uint16
    with pytest.raises(DataError, match=r"^tokenizer: vocab must have 1 to 65,536 characters, got 65,537$"):
        CharTokenizer(vocab + chr(0x10000 + 65_536))
    for bad in ("ba", "aab", ""):
        with pytest.raises(DataError, match="^tokenizer: vocab must "):
            CharTokenizer(bad)


FEW = "the corpus has 5 characters: '\\n abc'"


@pytest.mark.parametrize(
    ("tokenizer", "text", "message"),
    [
        (ABC, "ab?", f"character '?' (U+003F) at position 2 is not in the corpus; {FEW}"),
        (ABC, "A", f"character 'A' (U+0041) at position 0 is not in the corpus; 'a' is; {FEW}"),
        (ABC, "a\tb", f"character '\\t' (U+0009) at position 1 is not in the corpus; {FEW}"),
        (ABC, "bâ", f"character 'â' (U+00E2) at position 1 is not in the corpus; 'a' is; {FEW}"),
        (ABC, "a\u0301", f"character '\\u0301' (U+0301) at position 1 is not in the corpus; {FEW}"),
        (ABC, "a\ud800", f"character '\\ud800' (U+D800) at position 1 is not in the corpus; {FEW}"),
        (ABC, "\U0001f600?", f"character '😀' (U+1F600) at position 0 is not in the corpus; {FEW}"),
        (
            CharTokenizer(VOCAB),
            "a",
            "character 'a' (U+0061) at position 0 is not in the corpus; the corpus has 130 characters: "
            f"'{VOCAB[:100]}' and 30 more",
        ),
        (
            BYTES,
            "ok \udc80",
            "character '\\udc80' (U+DC80) at position 3 is a lone surrogate, which has no UTF-8 form",
        ),
    ],
)
def test_a_foreign_character_is_named_with_its_place_and_what_there_is(tokenizer, text, message):
    with pytest.raises(DataError) as error:
        tokenizer.encode(text)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([5], "must be 0 to 4, got 5"),
        ([-1], "must be 0 to 4, got -1"),
        ([0, 300], "must be 0 to 4, got 300"),
        (np.array([2**40]), f"must be 0 to 4, got {2**40}"),
        ([0.5], "must be a list of integers, got shape (1,) of float64"),
        ([[1]], "must be a list of integers, got shape (1, 1) of int64"),
        ([True], "must be a list of integers, got shape (1,) of bool"),
    ],
)
def test_other_ids_are_refused(ids, message):
    with pytest.raises(DataError) as error:
        ABC.decode(ids)
    assert str(error.value) == f"token ids {message}"
    with pytest.raises(DataError, match=r"^token ids must be (a list|0 to 255)"):
        BYTES.decode([256] if ids == [5] else ids)


def test_token_text_fits_in_a_table():
    assert [ABC.token_text(i) for i in range(3)] == ["'\\n'", "' '", "'a'"]
    assert CharTokenizer("a\u0301").token_text(1) == "'\\u0301'"
    shown = ["'\\n'", "'A'", "'\\x7f'", "0x80", "0xFF"]
    assert [BYTES.token_text(i) for i in (10, 65, 0x7F, 0x80, 255)] == shown
    with pytest.raises(DataError):
        ABC.token_text(5)


def test_json_returns_an_equal_tokenizer_and_nothing_else_does():
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
        with pytest.raises(DataError) as error:
            from_json(data)
        assert str(error.value).startswith("tokenizer: expected ") and str(error.value).endswith(f"got {str(data)!r}")
