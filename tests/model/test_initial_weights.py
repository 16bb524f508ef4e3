"""Initial weights: equal across rules, depths and dtypes, and of the stated distributions (model/init.py)."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model.config import InitGain
from model.init import Init
from model.network import Network
from networks import SIGMAS, L, leaves
from networks import float32_network as network


@partial(jax.jit, static_argnums=0)
def init(network: Network, seed, init_std=0.02):
    return network.init(seed, {"init_std": init_std})


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(network(residual="none", norm="none"), marks=pytest.mark.slow),
        network(residual="post_ln", tied_head=False, bias=True, positions="rope"),
        pytest.param(network(layers=6), marks=pytest.mark.slow),
        network("bfloat16"),
    ],
    ids=["no norm", "other ends", "deeper", "bfloat16"],
)
def test_a_parameter_starts_from_the_same_value_under_every_rule_option_depth_and_dtype(other):
    first, second = leaves(init(network(), 3)), leaves(init(other, 3))
    shared = first.keys() & second.keys()
    assert len(shared) >= 7  # the table and six matrices
    for path in shared:
        there = second[path][:L] if path.startswith("blocks/") else second[path]
        np.testing.assert_array_equal(first[path], there, err_msg=path)
        assert there.dtype == "float32"


@pytest.mark.slow
def test_float64_starts_from_the_float32_weights(x64):
    narrow, wide = leaves(init(network("float32"), 3)), leaves(init(network("float64"), 3))
    for path, leaf in wide.items():
        assert leaf.dtype == "float64"
        np.testing.assert_array_equal(leaf, narrow[path], err_msg=path)


def test_different_matrices_layers_and_seeds_differ():
    params = init(network(), 3)
    matrices = [leaf[layer] for layer in range(L) for leaf in jax.tree.leaves(params["blocks"]) if leaf.ndim == 3]
    matrices += [params["embed"], params["positions"]]
    assert len(matrices) == 3 * 6 + 2
    for i, a in enumerate(matrices):
        for b in matrices[i + 1 :]:
            assert a.shape != b.shape or abs(np.corrcoef(np.ravel(a), np.ravel(b))[0, 1]) < SIGMAS / np.sqrt(a.size)
    other = init(network(), 4)
    assert not np.any(np.asarray(other["embed"]) == np.asarray(params["embed"]))


def matrices(kind, rows, columns, std=0.02):
    drawn = Init(jax.random.key(0), kind, {"init_std": std}, jnp.dtype("float32"))
    return np.asarray(jax.jit(lambda: jnp.stack([drawn.matrix("w", layer, rows, columns) for layer in range(2)]))())


def test_standard_deviations():
    # The standard error of a standard deviation from n draws is std / sqrt(2n): 0.3 % here.
    for kind, rows, columns, std in (("xavier", 192, 320, np.sqrt(2 / 512)), ("normal", 320, 192, 0.02)):
        w = matrices(kind, rows, columns)
        assert w.shape == (2, rows, columns)
        assert w.std() == pytest.approx(std, rel=0.03)
        assert abs(w.mean()) < SIGMAS * std / np.sqrt(w.size)
    np.testing.assert_allclose(matrices("normal", 8, 8, std=0.5), 25 * matrices("normal", 8, 8), rtol=1e-6)


def test_orthogonal_matrices_are_not_factorized_as_a_batch():
    """A batch waits for the thread pool from inside it; two at once deadlock two cores (model/init.py)."""
    net = network(init="orthogonal")
    text = jax.jit(lambda seed: net.init(seed)).lower(np.uint32(0)).as_text()
    calls = [line for line in text.splitlines() if "geqrf" in line and "custom_call" in line]
    assert calls and not [line for line in calls if re.search(r"tensor<\d+x\d+x\d+xf32>", line)]


def test_orthogonal_matrices():
    for rows, columns in ((24, 24), (24, 8), (8, 24)):
        for w in matrices("orthogonal", rows, columns).astype(np.float64):
            short = w.T @ w if rows >= columns else w @ w.T
            np.testing.assert_allclose(short, np.eye(min(rows, columns)), rtol=0, atol=1e-6)


@pytest.mark.slow
def test_tables_gains_and_biases_start_as_stated():
    params = init(network(bias=True, norm="layer", tied_head=False, init="orthogonal"), 0, 0.5)
    for table in ("embed", "head", "positions"):
        values = np.asarray(params[table])
        assert values.std() == pytest.approx(0.5, rel=SIGMAS / np.sqrt(2 * values.size))
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if path[-1].key in ("gain", "bias"):
            np.testing.assert_array_equal(leaf, 1.0 if path[-1].key == "gain" else 0.0)


@pytest.mark.slow
def test_init_gains_scale_one_kind_of_matrix_each():
    tags = {f"init_gain.{tag}": float(gain) for gain, tag in enumerate(InitGain.model_fields, 2)}
    net, scaled_by = network(activation="swiglu"), {}
    usual, scaled = (leaves(jax.jit(lambda numbers=numbers: net.init(0, numbers))()) for numbers in ({}, tags))
    for path, leaf in usual.items():
        if path.endswith("kernel"):
            scaled_by["init_gain." + "_".join(path.split("/")[1:3])] = scaled[path] / leaf
    assert set(scaled_by) == set(tags)
    for key, ratio in scaled_by.items():
        np.testing.assert_allclose(ratio, tags[key], rtol=1e-6)
