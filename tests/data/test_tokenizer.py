import json
import random

import numpy as np
import pytest

from data import DataError
from data.tokenizer import ByteTokenizer, CharTokenizer, from_json, token_dtype

ABC = CharTokenizer("\n abc")
RANGES = [(0x20, 0x7E), (0xA0, 0x2FF), (0x4E00, 0x4FFF), (0x1F300, 0x1F5FF)]


def random_text(seed: int, length: int) -> str:
    draw = random.Random(seed)
    return "".join(chr(draw.randint(*draw.choice(RANGES))) for _ in range(length))


def test_an_id_is_the_place_in_the_sorted_vocabulary():
    ids = ABC.encode("cab\n a")
    assert ids.tolist() == [4, 2, 3, 0, 1, 2]
    assert ids.dtype == np.uint8
    assert ABC.decode([4, 2, 3]) == "cab"
    assert ABC.vocab_size == 5


def test_bytes_are_their_own_ids():
    ids = ByteTokenizer().encode("aé\r\n")
    assert ids.tolist() == [97, 0xC3, 0xA9, 13, 10]
    assert ids.dtype == np.uint8
    assert ByteTokenizer().vocab_size == 256


@pytest.mark.parametrize("seed", range(20))
def test_decode_undoes_encode(seed):
    text = random_text(seed, length=seed * 37)
    for tokenizer in (CharTokenizer("".join(sorted(set(text + "x")))), ByteTokenizer()):
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert tokenizer.decode(ids.tolist()) == text


def test_long_texts_are_encoded_in_slices_that_join():
    text = "abc" * 200_001
    ids = ABC.encode(text)
    np.testing.assert_array_equal(ids, np.tile([2, 3, 4], 200_001))
    with pytest.raises(DataError, match=r"character '!' \(U\+0021\) at position 600,003 "):
        ABC.encode(text + "!")


@pytest.mark.parametrize(("size", "dtype"), [(1, "u1"), (256, "u1"), (257, "u2"), (65_536, "u2"), (65_537, "u4")])
def test_the_dtype_is_the_smallest_that_fits(size, dtype):
    assert token_dtype(size) == np.dtype(dtype)


def test_a_large_vocabulary_is_uint16_and_its_limit_is_stated():
    vocab = "".join(map(chr, range(0x10000, 0x10000 + 65_536)))
    assert CharTokenizer(vocab).encode(vocab[-1]).tolist() == [65_535]
    assert CharTokenizer(vocab).encode(vocab[-1]).dtype == np.uint16
    with pytest.raises(DataError, match=r"^tokenizer: vocab must have 1 to 65,536 characters, got 65,537$"):
        CharTokenizer(vocab + chr(0x10000 + 65_536))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ab?", "character '?' (U+003F) at position 2 is not in the corpus; "),
        ("A", "character 'A' (U+0041) at position 0 is not in the corpus; 'a' is; "),
        ("a\tb", "character '\\t' (U+0009) at position 1 is not in the corpus; "),
        ("bâ", "character 'â' (U+00E2) at position 1 is not in the corpus; 'a' is; "),
        ("a\u0301", "character '\\u0301' (U+0301) at position 1 is not in the corpus; "),
        ("a\ud800", "character '\\ud800' (U+D800) at position 1 is not in the corpus; "),
        ("\U0001f600?", "character '😀' (U+1F600) at position 0 is not in the corpus; "),
    ],
)
def test_a_foreign_character_is_named_with_its_place_and_what_there_is(text, message):
    with pytest.raises(DataError) as error:
        ABC.encode(text)
    assert str(error.value) == message + "the corpus has 5 characters: '\\n abc'"


def test_a_long_vocabulary_is_listed_in_part():
    vocab = "".join(map(chr, range(0x4E00, 0x4E00 + 130)))
    with pytest.raises(DataError) as error:
        CharTokenizer(vocab).encode("a")
    assert str(error.value).endswith(f"the corpus has 130 characters: '{vocab[:100]}' and 30 more")


def test_a_lone_surrogate_has_no_bytes():
    with pytest.raises(DataError) as error:
        ByteTokenizer().encode("ok \udc80")
    assert str(error.value) == "character '\\udc80' (U+DC80) at position 3 is a lone surrogate, which has no UTF-8 form"


def test_broken_bytes_decode_to_the_replacement_character():
    assert ByteTokenizer().decode([97, 0xC3, 98]) == "a\ufffdb"


@pytest.mark.parametrize("ids", [[5], [-1], [0, 300], np.array([2**40])])
def test_ids_outside_the_vocabulary_are_refused(ids):
    worst = max(ids) if max(ids) > 4 else min(ids)
    with pytest.raises(DataError) as error:
        ABC.decode(ids)
    assert str(error.value) == f"token ids must be 0 to 4, got {worst}"


@pytest.mark.parametrize(
    ("ids", "got"), [([0.5], r"\(1,\) of float64"), ([[1]], r"\(1, 1\) of int64"), ([True], r"\(1,\) of bool")]
)
def test_ids_are_a_list_of_integers(ids, got):
    for tokenizer in (ABC, ByteTokenizer()):
        with pytest.raises(DataError, match=rf"^token ids must be a list of integers, got shape {got}$"):
            tokenizer.decode(ids)


def test_nothing_encodes_to_nothing():
    for tokenizer in (ABC, ByteTokenizer()):
        assert tokenizer.encode("").shape == (0,)
        assert tokenizer.decode([]) == ""


def test_token_text_fits_in_a_table():
    assert [ABC.token_text(i) for i in range(3)] == ["'\\n'", "' '", "'a'"]
    assert CharTokenizer("a\u0301").token_text(1) == "'\\u0301'"
    assert [ByteTokenizer().token_text(i) for i in (10, 65, 0x7F, 0x80, 255)] == [
        "'\\n'",
        "'A'",
        "'\\x7f'",
        "0x80",
        "0xFF",
    ]
    with pytest.raises(DataError):
        ABC.token_text(5)


@pytest.mark.parametrize("tokenizer", [ABC, ByteTokenizer(), CharTokenizer("\x00é😀")])
def test_json_returns_an_equal_tokenizer(tokenizer):
    assert from_json(json.loads(json.dumps(tokenizer.to_json()))) == tokenizer


@pytest.mark.parametrize(
    "data",
    [
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
    ],
)
def test_other_json_is_refused(data):
    with pytest.raises(DataError) as error:
        from_json(data)
    assert str(error.value).startswith("tokenizer: expected ") and str(error.value).endswith(f"got {str(data)!r}")


@pytest.mark.parametrize("vocab", ["ba", "aab", ""])
def test_a_vocabulary_is_sorted_without_repeats_and_not_empty(vocab):
    with pytest.raises(DataError, match="^tokenizer: vocab must "):
        CharTokenizer(vocab)
