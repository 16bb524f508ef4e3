"""Byte-pair encoding: merges by hand, any text there and back, what the merges depend on and what they must not."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data import DataError
from data.bpe import ALPHABET, BpeTokenizer, learn, pieces
from data.tokenizer import ByteTokenizer, from_json
from sources import PROSE, write

package = pytest.importorskip("tokenizers")
QUIET = settings(derandomize=True, deadline=None, database=None)


def merged(*merges: str) -> BpeTokenizer:
    return BpeTokenizer.of(tuple(merge.split(" ")) for merge in merges)  # pyright: ignore[reportArgumentType]


MERGES = ("l o", "lo w", "Ġ low", "Ġlow e")
LOW = merged(*MERGES)


# Merges


def test_merges_by_hand():
    """Words low, _low, _low, _lower, _lowest: l o and o w are there 5 times, _ l 4, w e 2; then lo w 5, _ lo 4; then
    _ low 4, low e 2; then _low e 2; all other pairs once."""
    words = "low low low lower lowest"
    assert learn([words], 1000) == LOW and LOW.vocab_size == 260
    assert learn([words], 258) == merged(*MERGES[:2])
    assert learn([words], 256) == learn([], 1000) == merged()
    ids = LOW.encode("low lower slow")
    assert ids.tolist() == [257, 259, ord("r"), ord(" "), ord("s"), 257] and ids.dtype == np.uint16
    assert LOW.decode(ids) == "low lower slow" and LOW.decode([258]) == " low"
    twice = merged("a b", "b c", "ab c", "a bc")  # two merges of one token are one token
    assert twice.vocab_size == 259 and twice.encode("abc bc ab").tolist() == [258, 32, 257, 32, 256]


def test_without_merges_it_is_the_byte_tokenizer_and_the_alphabet_is_gpt2_s():
    every = "".join(map(chr, range(0x800))) + "語😀\U0010ffff"
    ids = merged().encode(every)
    np.testing.assert_array_equal(ids, ByteTokenizer().encode(every))
    assert ids.dtype == np.uint8
    assert sorted(ALPHABET) == sorted(package.pre_tokenizers.ByteLevel.alphabet()) and len(set(ALPHABET)) == 256
    assert ALPHABET[ord(" ")] == "Ġ" and ALPHABET[ord("\n")] == "Ċ" and ALPHABET[0xC3] == "Ã" and ALPHABET[0xAD] == "Ń"


def test_its_json_is_the_package_s_own():
    """tokenizer.json of a run can be read by whatever reads those of Hugging Face."""
    learnt = learn([PROSE], 400)
    path = write("tokenizer.json", json.dumps(learnt.to_json(), indent=1))
    assert from_json(json.loads(Path(path).read_text(encoding="utf-8"))) == learnt
    theirs = package.Tokenizer.from_file(path)
    ids = theirs.encode(PROSE).ids
    assert ids == learnt.encode(PROSE).tolist() and theirs.decode(ids) == PROSE
    assert theirs.get_vocab_size() == learnt.vocab_size


LETTERS = {letter: byte for byte, letter in enumerate(ALPHABET)}


@pytest.mark.parametrize(
    "change",
    [
        {"normalizer": {"type": "NFC"}},
        {"added_tokens": [{"id": 260, "content": "<s>"}]},
        {"truncation": {"max_length": 3}},
        {"pre_tokenizer": None},
        {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True, "use_regex": True}},
        {"model": {"dropout": 0.5}},
        {"model": {"vocab": {}}},
        {"model": {"vocab": LETTERS | {"ab": 257}}},  # a gap
        {"model": {"vocab": LETTERS | {"ab": 255}}},
        {"model": {"vocab": LETTERS | {"ab": "256"}}},
        {"model": {"vocab": LETTERS | {"": 256}}},
        {"model": {"vocab": LETTERS | {"語": 256}}},
        {"model": {"vocab": {letter: byte for letter, byte in LETTERS.items() if byte < 255}}},
        {"model": {"merges": None}},
    ],
)
def test_other_tokenizers_of_the_package_are_refused(change, wording):
    data = LOW.data | {key: LOW.data[key] | value if key == "model" else value for key, value in change.items()}
    with wording.raises(DataError, "tokenizer", volatile="(?<=got ).*"):
        from_json(data)


@pytest.mark.parametrize("bad", [["zz", "q"], ["l"], "l", 3, ["l", 3]])
def test_merges_that_cannot_be_are_refused_when_text_is_encoded(bad, wording):
    data = LOW.data | {"model": LOW.data["model"] | {"merges": [*LOW.data["model"]["merges"], bad]}}
    with wording.raises(DataError, "tokenizer", volatile="(?<=tokenizer: ).*"):
        from_json(data).encode("low")


# There and back


@QUIET
@given(st.text())
def test_any_text_is_encoded_and_decoded_to_itself(any_text):
    """Whatever the merges: no space is added, nothing is normalised."""
    for one in (LOW, learn([any_text, any_text], 300)):
        ids = one.encode(any_text)
        assert one.decode(ids) == one.decode(ids.tolist()) == any_text
        assert ids.size == 0 or ids.max() < one.vocab_size


def test_nothing_is_special():
    for odd in (" a", "a ", "e\u0301 \u00e9", "ﬁ", "\ufeffa", "\x00", "a\r\n\u2028b", "<s>[UNK]"):
        one = learn([PROSE + odd, odd], 400)
        assert one.decode(one.encode(odd)) == odd


def test_tokens_are_shown_on_one_line():
    one = merged("Ġ t", "Ċ Ċ", "Ã ©", "ç ĭ", "Ġ ç", "Ì ģ")
    shown = ["' t'", "'\\n\\n'", "'é'", "0xE78B", "b' \\xe7'", "'\\u0301'", "'\\n'", "'A'", "0x80"]
    assert [one.token_text(index) for index in (*range(256, 262), 10, 65, 0x80)] == shown


# Pieces

SPACES = " \t\n\x0b\x0c\r\x85\u00a0\u1680\u2000\u200a\u2028\u2029\u202f\u205f\u3000"
WORDS = st.tuples(
    st.text("ab1'!é語\x1c\x1f\u200b", max_size=3), st.sampled_from("ab1'!é語"), st.text(SPACES, min_size=1, max_size=3)
)


@QUIET
@given(st.lists(WORDS.map("".join), max_size=40), st.integers(10, 40))
def test_pieces_are_encoded_as_the_whole_is(words, size):
    together = "".join(words)
    apart = list(pieces(words, size))
    assert "".join(apart) == together and all(len(piece) <= size for piece in apart)
    assert apart == list(pieces([together], size)) == list(pieces(together, size))
    encode = learn([together] * 2, 400).library.encode
    assert [index for piece in apart for index in encode(piece).ids] == encode(together).ids


def test_what_has_no_spaces_is_cut_anyway():
    tight = "x" * 100 + " " * 30 + "語" * 30
    apart = list(pieces([tight], 7))
    one = learn(apart, 300)
    assert max(map(len, apart)) == 7
    assert one.decode(np.concatenate([one.encode(piece) for piece in apart])) == tight
