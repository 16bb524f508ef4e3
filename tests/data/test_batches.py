"""Windows and rows as functions of (seed, step): the generator's own values, laws of resuming, tiling and spreading."""

import re

import numpy as np
import pytest

from data.batches import Draws, gather, heldout_starts, spread, window_starts
from data.source import Batch, tiled


def philox(counter: int, key: int) -> list[int]:
    """Philox 4x64-10 as its paper writes it: ten rounds of two multiplications."""
    mask = 2**64 - 1
    c, k = [counter, 0, 0, 0], [key, 0]
    for _ in range(10):
        p, q = 0xD2E7470EE14C6C93 * c[0], 0xCA5A826395121157 * c[2]
        c = [(q >> 64) ^ c[1] ^ k[0], q & mask, (p >> 64) ^ c[3] ^ k[1], p & mask]
        k = [(k[0] + 0x9E3779B97F4A7C15) & mask, (k[1] + 0xBB67AE8584CAA73B) & mask]
    return c


def test_starts_are_those_of_the_generator_and_never_change():
    """Runs must repeat on every version of numpy, so the values are written down too."""
    starts = window_starts(1000, 10, 5, seed=7, first_step=3, steps=2)
    assert starts.dtype == np.int32
    assert starts.tolist() == [[814, 958, 151, 427, 448], [138, 332, 646, 603, 592]]
    for row, step in zip(starts, (3, 4), strict=True):
        # A batch of 5 takes two counts of four words; numpy adds one to the counter before each.
        words = philox(2 * step + 1, 7) + philox(2 * step + 2, 7)
        assert row.tolist() == [word % 990 for word in words[:5]]
    assert window_starts(11, 10, 3, seed=0, first_step=0, steps=2).tolist() == [[0, 0, 0], [0, 0, 0]]
    assert window_starts(100, 10, 4, seed=0, first_step=5, steps=0).shape == (0, 4)


@pytest.mark.parametrize("batch", [1, 3, 4, 5, 16])
@pytest.mark.parametrize("first", [0, 1, 17, 2**40, np.int32(2**31 - 1)])
def test_a_row_depends_on_its_step_and_not_on_where_the_run_was_resumed(batch, first):
    rows = window_starts(5000, 64, batch, seed=1, first_step=first, steps=12)
    assert rows.shape == (12, batch)
    for skip in (0, 1, 5, 11):
        resumed = window_starts(5000, 64, batch, seed=1, first_step=int(first) + skip, steps=12 - skip)
        np.testing.assert_array_equal(rows[skip:], resumed)


def test_starts_are_uniform_and_reach_both_ends():
    """Chi-square of 64 equally likely starts: 63 degrees of freedom, 99.9 % of uniform draws stay below 103.4."""
    starts = window_starts(n_tokens=64 + 9, context=9, batch=6, seed=0, first_step=0, steps=4000)
    counts = np.bincount(starts.ravel(), minlength=64)
    assert len(counts) == 64
    expected = starts.size / 64
    assert ((counts - expected) ** 2 / expected).sum() < 103.4
    for column in range(6):  # no column of a batch is poorer than another
        assert len(np.unique(starts[:, column])) == 64


def test_draws_are_uniform_and_normal():
    draws = Draws(5, 1, 0, 4, 5000)
    uniform = draws.uniform(3)
    assert uniform.shape == (20_000, 3) and 0 <= uniform.min() and uniform.max() < 1
    assert uniform.mean() == pytest.approx(0.5, abs=0.01) and uniform.var() == pytest.approx(1 / 12, abs=0.005)
    normal = draws.normal(2)
    assert [np.mean(normal**k) for k in (1, 2, 3, 4)] == pytest.approx([0, 1, 0, 3], abs=0.1)
    assert np.bincount(draws.integers(4).ravel()) / 20_000 == pytest.approx([0.25] * 4, abs=0.02)


def test_windows_as_computed_by_hand(tmp_path, wording):
    tokens = np.array([5, 6, 7, 8, 9], np.uint16)
    tokens.tofile(tmp_path / "tokens")
    for source in (tokens, np.memmap(tmp_path / "tokens", np.uint16, "r"), tokens.astype(">u2")):
        windows = gather(source, np.array([[0, 2], [1, 0]], np.int32), context=2)
        assert type(windows) is np.ndarray and windows.dtype == np.uint16
        assert windows.tolist() == [[[5, 6, 7], [7, 8, 9]], [[6, 7, 8], [5, 6, 7]]]
        assert windows.flags.c_contiguous and windows.flags.owndata
    for start in (-1, 3):
        with wording.raises(ValueError) as caught:
            gather(tokens, np.array([0, start]), 2)
        assert re.findall(r"-?\d+", str(caught.value)) == ["0", "2", str(min(start, 0)), str(max(start, 0))]


@pytest.mark.parametrize("n", [9, 10, 16, 17, 18, 1000, 1001])
@pytest.mark.parametrize("context", [1, 5, 8])
def test_no_target_counts_twice_and_none_is_left_out_but_the_rest(n, context):
    for batch in (1, 4, 300):
        for batches in (None, 1, 2, 1000):
            starts, weights = heldout_starts(n, context, batch, batches)
            assert starts.shape == weights.shape and starts.shape[1] == batch
            assert (starts.dtype, weights.dtype) == (np.int32, np.float32)
            assert set(np.unique(weights)) <= {0.0, 1.0}
            real = starts[weights == 1]
            assert (starts[weights == 0] == 0).all()
            assert weights.sum() == len(real) == min((n - 1) // context, n if batches is None else batches * batch)
            assert weights[:-1].all()  # only the last batch is filled up
            targets = (real[:, None] + 1 + np.arange(context)).ravel()
            assert len(np.unique(targets)) == len(targets)
            assert targets.max() <= n - 1
            assert (real % context == 0).all()
            if batches is None or batches == 1000:
                assert sorted(targets) == list(range(1, 1 + (n - 1) // context * context))
                assert (n - 1) - len(targets) < context


def test_a_few_windows_are_spread_evenly():
    starts, weights = heldout_starts(n_tokens=1001, context=10, batch=2, batches=5)
    assert starts.ravel().tolist() == [50, 150, 250, 350, 450, 550, 650, 750, 850, 950]
    assert weights.all()
    gaps = np.diff(heldout_starts(10_001, 10, 3, 11)[0].ravel()) // 10
    assert set(gaps) == {30, 31}


@pytest.mark.parametrize(("n", "batch", "batches"), [(1, 4, None), (7, 3, None), (100, 4, 3), (100, 7, 50)])
def test_rows_and_windows_are_spread_alike(n, batch, batches):
    index, weights = spread(n, batch, batches)
    rows, row_weights = tiled(Batch(np.arange(n), np.arange(n)), batch, batches)
    starts, window_weights = heldout_starts(5 * n + 1, 5, batch, batches)
    np.testing.assert_array_equal(rows.inputs, index)
    np.testing.assert_array_equal(starts, 5 * index)
    np.testing.assert_array_equal(row_weights, weights)
    np.testing.assert_array_equal(window_weights, weights)


def test_sizes(wording):
    starts, _ = heldout_starts(2**31, 1, 2**10, 4)
    assert starts.min() >= 0 and starts.ravel()[-1] > 2**31 - 2**20  # no overflow
    assert window_starts(2**31, 1, 1000, 0, 0, 10).min() >= 0
    for n in (0, 8, 2**31 + 1):
        for starts_of in (lambda n: window_starts(n, 8, 1, 0, 0, 1), lambda n: heldout_starts(n, 8, 1, None)):
            with wording.raises(ValueError) as caught:
                starts_of(n)
            assert str(caught.value).endswith(f" {n}")
