"""Losses of the best constant prediction: by hand, and against all other constant predictions."""

import json

import numpy as np
import pytest

from data.floors import counts, prior, unigram
from sources import opened, write


def test_unigram_by_hand():
    """Trained on aab, asked for abc: p = (3, 2, 1) / 6 with one more of each."""
    train, heldout = np.array([2, 1]), np.array([1, 1, 1])
    assert unigram(train, heldout, 3) == pytest.approx(-np.mean(np.log([3 / 6, 2 / 6, 1 / 6])))
    assert unigram(heldout, train, 3) == pytest.approx(np.log(3))  # of equal parts, whatever is asked
    assert unigram(np.array([10**9]), np.array([0, 1]), 2) == pytest.approx(np.log(10**9 + 2))  # never seen, yet finite


def test_counts_of_a_long_sequence_are_those_of_blocks_spread_over_it():
    ids = np.repeat(np.arange(10, dtype=">u2"), 100)
    assert counts(ids).tolist() == [100] * 10
    assert counts(ids, 10, 10).tolist() == [10] * 10 and counts(ids[:55], 10, 10).tolist() == [55]
    ids[-1] = 10  # the last block ends where they end
    assert counts(ids, 10, 10).tolist() == [10] * 9 + [9, 1]
    assert counts(ids[:500], 10, 10).tolist() == [20] * 5


def test_of_a_text_it_is_the_loss_of_the_training_texts_frequencies():
    text = "ab" * 300 + "aaac" * 25
    source = opened(path=write("t.txt", text), context=8, val_fraction=0.125)
    train, heldout = text[:-88], text[-88:]
    p = {token: (train.count(token) + 1) / (len(train) + 3) for token in "abc"}
    assert source.floors(4, 2) == {"unigram": pytest.approx(-np.mean([np.log(p[token]) for token in heldout]))}
    np.save("t.npy", np.tile(np.arange(4, dtype=np.uint16), 100))
    assert opened(kind="tokens", path="t.npy", context=8).floors(4, None) == {
        "unigram": pytest.approx(np.log(4), abs=1e-3)
    }


def test_of_classes():
    assert prior(np.array([0, 1, 1, 1])) == pytest.approx(-(np.log(0.25) + 3 * np.log(0.75)) / 4)
    weights = np.array([[1.0, 0.0], [1.0, 2.0]])
    assert prior(np.array([[0, 1], [2, 2]]), weights) == pytest.approx(-(np.log(0.25) + 3 * np.log(0.75)) / 4)


def test_it_is_logged_with_the_loss(trained):
    _, run = trained
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    logged = {row["loss/floor_unigram"] for row in rows if "loss/val" in row}
    assert logged == {json.loads((run / "summary.json").read_text())["floors"]["floor_unigram"]}
    assert 2.0 < logged.pop() < np.log(24)
