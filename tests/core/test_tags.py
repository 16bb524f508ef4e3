"""Tags of the watched steps: the headline ones by hand, and how many of them people are shown."""

import math
from functools import partial

import jax
import numpy as np
import pytest

from model.network import Network
from train.core.evaluate import Scores
from train.core.state import hparams_of, state_at
from train.core.step import train_step
from train.core.tags import headline, rows, watched_scalars
from train.gradflow.verdict import judge
from train.log.charts_layout import chart_layout, shown
from train.run.metrics import evaluation_row

ZERO = -math.inf
# Three steps over depths 0 to 2: an ordinary one, one with an exact zero at the bottom, one with nothing but zeros.
DELTA = np.array([[-3.0, -4.5, -1.0], [ZERO, -2.0, -1.0], [ZERO, ZERO, ZERO]])
# The share of a block is |q, k| / |v, o|, here 10^(q - v): -1, -3 and, where v and o get nothing either, no share.
Q = np.array([[-2.0, -4.0, ZERO], [ZERO, -4.0, ZERO], [ZERO, ZERO, ZERO]])
V = np.array([[-1.0, -1.0, ZERO], [-1.0, -1.0, ZERO], [ZERO, ZERO, ZERO]])


def test_headline_tags_by_hand():
    grad = {"attn_q": Q, "attn_k": Q, "attn_v": V, "attn_o": V}
    first, bottom, nothing = rows(headline("flow", DELTA, grad))
    assert first == {"flow/delta_ratio_log10": -2.0, "flow/delta_min_log10": -3.5, "flow/qk_share_log10": -2.0}
    assert bottom == {"flow/delta_ratio_log10": None, "flow/delta_min_log10": None, "flow/qk_share_log10": None}
    assert nothing == bottom


def test_headline_tags_of_what_is_not_finite():
    grad = dict.fromkeys(("attn_q", "attn_k", "attn_v", "attn_o"), np.full((1, 2), np.nan))
    (row,) = rows(headline("flow", np.array([[np.nan, 0.0, 0.0]]), grad))
    assert all(math.isnan(x) for x in row.values())
    (row,) = rows(headline("flow", np.zeros((1, 3)), {"mlp_in": np.zeros((1, 2))}))  # a model without attention
    assert row == {"flow/delta_ratio_log10": 0.0, "flow/delta_min_log10": 0.0}


@pytest.mark.parametrize("blocks", [1, 2, 5, 6])
def test_headline_tags_are_the_figures_of_the_verdict(blocks):
    rng = np.random.default_rng(blocks)
    delta = rng.normal(0, 0.3, (4, blocks + 1))
    grad = {name: rng.normal(0, 0.3, (4, blocks)) for name in ("attn_q", "attn_k", "attn_v", "attn_o")}
    for step, row in enumerate(rows(headline("flow", delta, grad))):
        verdict = judge(delta[step], {name: values[step] for name, values in grad.items()})
        assert row["flow/delta_ratio_log10"] == verdict.log10_ratio
        assert row["flow/qk_share_log10"] == pytest.approx(math.log10(verdict.qk_share), abs=1e-12)


def tags_of(config):
    """All tags of a config's watched step, without compiling it."""
    network = Network(config.model, 11, config.data.context, "float32")
    hp = hparams_of(config, "float32")
    state = jax.eval_shape(lambda: state_at(config, hp, network.init(0, hp.model)))
    windows = jax.ShapeDtypeStruct((config.data.batch, config.data.context + 1), np.int32)
    stats = jax.eval_shape(partial(train_step, network, config, watched=True), state, hp, windows)[2]
    ones = jax.tree.map(lambda leaf: np.ones((1, *leaf.shape)), stats)
    return set(watched_scalars(ones, "float32")[0])


def test_twelve_blocks_show_at_most_120_scalars(tiny):
    """And those of the overview are among them."""
    config = tiny({"model.layers": 12, "optimizer.ema": 0.9}).variants[0].config
    tags = tags_of(config) | {"loss/train", "loss/spike", "optim/lr", "optim/skipped"}
    tags |= {"perf/steps_per_s", "perf/tokens_per_s", "perf/mfu"}
    for split in ("val", "val_ema"):
        tags |= set(evaluation_row(Scores(np.float32(1), np.float32(1)), {"unigram": 3.0}, "lm", split))
    assert len(tags) > 500
    assert 100 < sum(map(shown, tags)) <= 120
    overview = chart_layout()["overview"].values()
    assert {pattern.strip("^$") for pattern in overview} <= {tag for tag in tags if shown(tag)}
