"""Groups of variants: what shares a program, that sharing changes no result, and what is compiled and when."""

import contextlib
import hashlib

import jax
import numpy as np
import pytest

from data.batches import window_starts
from data.source import DataSpec
from data.text import open_text
from model.network import Network
from runs import NotedPrograms
from train.device import platform as platforms
from train.device.programs import Programs, grouped, model_flops
from train.device.signals import Stop
from train.log.console import Console
from train.run.dispatches import assumed_step_seconds, steps_per_call
from train.run.experiment import build_group
from train.run.loop import GroupRun
from train.run.setup import GroupSetup

COMPILED = "/jax/core/compile/backend_compile_duration"
_compiles: list[str] = []


@pytest.fixture(scope="module", autouse=True)
def _listener():
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, duration, **_: _compiles.append(event) if event == COMPILED else None
    )


@contextlib.contextmanager
def counting():
    """A list that holds, after the `with`, the number of programs that XLA compiled during it."""
    before, count = len(_compiles), []
    yield count
    count.append(len(_compiles) - before)


# Grouping


def test_variants_of_one_structure_come_together_in_the_order_of_the_file(tiny):
    variants = {
        "with": {},
        "no_norm": {"model.norm": "none"},
        "without": {"model.residual": "none"},
        "slow": {"optimizer.lr": 2e-4},
        "unclipped": {"optimizer.clip": None},
        "no_norm_without": {"model.norm": "none", "model.residual": "none"},
        "seeded": {"seed": 5, "model.skip_scale": 0.5},
    }
    groups = grouped(tiny({"variants": variants}).variants)
    names = [[variant.name for variant in members] for members in groups]
    assert names == [["with", "without", "slow", "seeded"], ["no_norm", "no_norm_without"], ["unclipped"]]


def test_a_sweep_over_traced_numbers_is_one_group(tiny):
    sweep = {"seed": [0, 1], "optimizer.lr": [1e-3, 1e-2], "optimizer.weight_decay": [0.0, 0.1]}
    assert [len(members) for members in grouped(tiny({"sweep": sweep}).variants)] == [8]


@pytest.mark.parametrize(
    ("eval_every", "checkpoint_every", "watch", "steps", "seconds", "expected"),
    [
        (250, 500, 10, 2000, 0.001, 50),  # of the divisors of 250, those that 10 divides: 10, 50, 250; at most 100
        (250, 500, 10, 2000, 0.03, 10),  # 33 fit into a second: 10 and 25, but 25 is no multiple of 10
        (250, 500, 10, 2000, 0.2, 5),
        (250, 500, 10, 2000, 0.4, 2),
        (250, 500, 10, 2000, 7.0, 1),
        (250, 500, 0, 2000, 0.03, 25),
        (250, 500, 1, 2000, 0.03, 25),
        (250, 500, 7, 2000, 0.001, 1),  # no divisor of 250 goes with 7 but 1
        (70, 140, 7, 2000, 0.001, 70),
        (100, 100, 10, 2000, 1e-6, 100),
        (1000, 1000, 10, 2000, 1e-6, 100),
        (20, 30, 5, 2000, 0.001, 10),
        (7, 5, 1, 2000, 0.001, 1),
        (250, 500, 10, 12, 0.001, 10),
        (250, 500, 10, 3, 0.001, 2),
        (10**9, 10**9, 0, 12, 1e-9, 10),
    ],
)
def test_steps_per_call(tiny, eval_every, checkpoint_every, watch, steps, seconds, expected):
    keys = {"train.eval_every": eval_every, "train.checkpoint_every": checkpoint_every, "watch.every": watch}
    config = tiny(keys | {"train.steps": steps}).variants[0].config
    k = steps_per_call(config, seconds)
    assert k == expected
    assert eval_every % k == 0 and checkpoint_every % k == 0
    assert watch == 0 or k % watch == 0 or watch % k == 0
    assert steps_per_call(tiny(keys | {"train.steps_per_call": 1}).variants[0].config, 1e-6) == 1  # as it is written


@pytest.mark.parametrize(
    ("keys", "weights"),
    [
        # Weights of one block at D = 16, F = 64: q, k, v, o are 16 x 16, the MLP 16 x 64 and 64 x 16.
        ({}, 4 * 256 + 2 * 1024),
        ({"model.norm": "none", "model.positions": "none"}, 4 * 256 + 2 * 1024),  # neither is a matmul
        ({"model.bias": True, "model.norm": "layer"}, 4 * 256 + 2 * 1024),
        ({"model.kv_heads": 1}, 2 * 256 + 2 * 128 + 2 * 1024),
        ({"model.activation": "swiglu"}, 4 * 256 + 3 * 1024),
        ({"model.tied_head": False}, 4 * 256 + 2 * 1024),  # a lookup is no matmul
    ],
)
def test_model_flops_by_hand(tiny, keys, weights):
    config = tiny(keys).variants[0].config
    network = Network(config.model, vocab_size=24, context=8)
    tokens, layers = 3 * 8, 2
    products = 2 * (layers * weights + 24 * 16)  # forwards, a token: two FLOPs a weight, the head too
    attention = layers * 2 * (2 * 8 * 16)  # q k^T and weights v: 2 T D each
    assert model_flops(network, batch=3) == 3 * (products + attention) * tokens  # backwards costs twice as much


@pytest.mark.parametrize(
    ("rule", "more"),
    [
        # Of each of 4 sublayers, at D = 16: 5 sources are scored and added up, two FLOPs an entry each time.
        ({"rule": "attnres"}, 4 * 5 * 2 * (2 * 16)),
        ({"rule": "attnres", "block": 1}, 4 * 3 * 2 * (2 * 16)),
        # 3 streams are read into one, 9 times added to one another, and written to.
        ({"rule": "hyper_connections", "streams": 3}, 4 * (3 + 9 + 3) * (2 * 16)),
        # And 5 columns of moving weights come of each of the 3 streams.
        ({"rule": "hyper_connections", "streams": 3, "dynamic": True}, 4 * (3 + 9 + 3 + 3 * 5) * (2 * 16)),
        ({"rule": "rezero"}, 0),
    ],
)
def test_the_flops_of_a_rule_by_hand(tiny, rule, more):
    def flops(residual):
        return model_flops(Network(tiny({"model.residual": residual}).variants[0].config.model, 24, 8), batch=3)

    assert flops(rule) - flops("pre_ln") == 3 * more * 3 * 8


# Sharing a program

STEPS, K = 30, 10
VARIANTS = {
    "with": {},
    "without": {"model.residual": "none"},
    "other": {"seed": 3, "data.seed": 0, "optimizer.lr": 5e-3},
}


@pytest.fixture(scope="module")
def trained(tiny):
    """A function of (group mode, names): the losses [variants, STEPS] and final parameters, trained together."""
    shared = {"watch.every": 0, "model.norm": "none", "optimizer.lr": 1e-2, "optimizer.min_lr": 1e-3}

    def train(mode: str, names: tuple[str, ...]):
        variants = tiny(shared | {"train.group": mode, "variants": VARIANTS}).variants
        members = [variant for variant in variants if variant.name in names]
        config = members[0].config
        dataset = open_text(config.data)
        group = build_group(members, dataset.spec, platforms.select(config.train))
        assert group.vmapped == (mode == "vmap" and len(members) > 1)
        programs = Programs(group, np.asarray(dataset.train))
        states, losses = programs.init(), []
        for first in range(0, STEPS, K):
            batch = window_starts(len(dataset.train), config.data.context, config.data.batch, 0, first, K)
            states, measured = programs.dispatch(states, [batch] * len(members), False)
            losses.append(np.stack([metrics.loss for metrics, _ in programs.each(jax.device_get(measured))]))
        params = [state.params for state in programs.each(jax.device_get(states))]
        return np.concatenate(losses, axis=1), params

    return train


@pytest.fixture(scope="module")
def alone(trained):
    runs = [trained("turn", (name,)) for name in VARIANTS]
    return np.concatenate([losses for losses, _ in runs]), [params[0] for _, params in runs]


@pytest.mark.slow
def test_called_in_turn_a_variant_is_what_it_is_alone(trained, alone):
    losses, params = trained("turn", tuple(VARIANTS))
    assert losses.shape == (3, STEPS)
    np.testing.assert_array_equal(losses, alone[0])
    jax.tree.map(np.testing.assert_array_equal, params, alone[1])
    assert losses[0, -1] < losses[0, 0] - 0.3  # it learns
    assert np.abs(losses[0] - losses[1]).max() > 1e-2 and np.abs(losses[0] - losses[2]).max() > 1e-2


@pytest.mark.slow
def test_vmapped_a_variant_is_nearly_what_it_is_alone(trained, alone):
    """A batched matmul may sum in another order: 2e-6 relative after 30 steps at a rate of 1e-2."""
    losses, _ = trained("vmap", tuple(VARIANTS))
    np.testing.assert_allclose(losses, alone[0], rtol=2e-6)


def sha(tree) -> str:
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        digest.update(jax.tree_util.keystr(path).encode() + np.asarray(leaf).tobytes())
    return digest.hexdigest()


@pytest.fixture(scope="module")
def twins(tiny, tmp_path_factory):
    """GroupSetup of each group of with, without, post_ln and no_norm; and of another seed, for contrast."""
    runs = str(tmp_path_factory.mktemp("runs"))
    variants = {
        "with": {},
        "without": {"model.residual": "none"},
        "post": {"model.residual": "post_ln"},
        "no_norm": {"model.norm": "none", "model.residual": "none"},
        "seeded": {"seed": 1, "data.seed": 1},
    }
    experiment = tiny({"variants": variants, "runs_dir": runs})
    dataset = open_text(experiment.variants[0].config.data)
    platform = platforms.select(experiment.variants[0].config.train)
    groups = [build_group(members, dataset.spec, platform) for members in grouped(experiment.variants)]
    assert len(groups) == 3
    return [GroupSetup(group, dataset, platform, Console()) for group in groups]


def test_twins_start_from_the_same_weights(twins):
    params = {}
    for setup in twins:
        for variant, state in zip(setup.group.variants, Programs(setup.group, None).init(), strict=True):
            params[variant.name] = jax.device_get(state.params)
    assert sha(params["with"]) == sha(params["without"])
    assert sha(params["with"]) != sha(params["seeded"])

    def drawn(tree):
        """All that is drawn at random: neither gains nor biases."""
        paths = jax.tree_util.tree_leaves_with_path(tree)
        return {jax.tree_util.keystr(path): leaf for path, leaf in paths if "norm" not in jax.tree_util.keystr(path)}

    assert len(drawn(params["with"])) == 8  # embed, positions, q, k, v, o, in, out
    assert sha(drawn(params["with"])) == sha(drawn(params["post"])) == sha(drawn(params["no_norm"]))


def test_twins_see_the_same_batches(twins):
    batches = {}
    for setup in twins:
        for first in (0, 10):
            for variant, batch in zip(setup.group.variants, setup.batches(first, first + 10), strict=True):
                assert batch.shape == (10, 4)
                batches[variant.name, first] = sha(batch)
    assert len({batches[name, 0] for name in ("with", "without", "post", "no_norm")}) == 1
    assert len({batches[name, 10] for name in ("with", "without", "post", "no_norm")}) == 1
    assert len({batches["with", 0], batches["with", 10], batches["seeded", 0], batches["seeded", 10]}) == 4


# Compiling, and keeping the device busy


class Guarded(GroupRun):
    """A run in which nothing may be transferred unasked; fetches are noted among the calls of its programs."""

    def train(self) -> None:
        assert isinstance(self.programs, NotedPrograms)
        events, fetch = self.programs.events, jax.device_get
        with pytest.MonkeyPatch.context() as patch, counting() as self.compiled, jax.transfer_guard("disallow"):
            patch.setattr(jax, "device_get", lambda tree: (events.append(("fetch", 0)), fetch(tree))[1])
            super().train()


@pytest.fixture(scope="module")
def watched_run(tiny, tmp_path_factory):
    """A whole run: (compilations, those while it trains, calls and fetches)."""
    keys = {"watch.every": 20, "train.eval_every": 30, "train.checkpoint_every": 30, "train.steps_per_call": K}
    keys |= {"variants": {"with": {}, "without": {"model.residual": "none"}}, "watch.counterfactual": False}
    keys |= {"model.norm": "none", "runs_dir": str(tmp_path_factory.mktemp("runs"))}
    experiment = tiny(keys)
    config = experiment.variants[0].config
    dataset = open_text(config.data)
    platform = platforms.select(config.train)
    (members,) = grouped(experiment.variants)
    setup = GroupSetup(build_group(members, dataset.spec, platform), dataset, platform, Console())
    setup.programs = NotedPrograms(setup.group, np.asarray(dataset.train))
    run = Guarded(setup, Stop())
    with counting() as compiled:
        run.run()
    return compiled[0], run.compiled[0], ["fetch" if name == "fetch" else "call" for name, _ in setup.programs.events]


def test_each_program_is_compiled_once_and_before_the_first_step(watched_run):
    """Two variants share: init, a watched dispatch, a plain one, the evaluation. And nothing is compiled on the way."""
    assert watched_run[:2] == (4, 0)


def test_results_are_fetched_one_call_late(watched_run):
    """The next call is under way before a result is fetched; but for the last one, before the run is saved."""
    events = watched_run[2]
    assert events[:3] == ["call", "call", "fetch"]
    assert events.count("call") == 5  # three windows, an evaluation before and after
    for index, event in enumerate(events):
        fetched = events[:index].count("fetch")
        if event == "fetch" and fetched < 3:
            assert events[:index].count("call") >= fetched + 2


def test_a_group_takes_its_time_from_all_its_variants_only_when_vmapped(tiny):
    variants = tiny({"variants": VARIANTS, "train.group": "vmap"}).variants
    platform = platforms.select(variants[0].config.train)
    together, single = (
        build_group(members, DataSpec("lm", 8, 24, 24), platform) for members in (variants, variants[:1])
    )
    work = model_flops(single.network, 4) / 8e10
    assert assumed_step_seconds(single, 4, "cpu") == pytest.approx(1e-4 + work)
    assert assumed_step_seconds(together, 4, "cpu") == pytest.approx(1e-4 + 3 * work)
