"""Update rules against numpy, leaf by leaf and layer by layer."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from train.config.optimizers import OPTIMIZERS
from train.config.schema import OptimizerConfig
from train.core.optimizer import transformation

LAYERS = 2
NUMBERS = {"lr": 0.02, "min_lr": 0.005, "weight_decay": 0.3, "betas": (0.8, 0.95), "eps": 1e-3, "momentum": 0.7}
RATES = [0.01, 0.02, 0.005 + 0.015 * 8 / 9]  # linear, one step of warm-up, ten steps


def tree(seed: int, scale: float = 1.0) -> dict[str, Any]:
    """Returns parameters of every kind, blocks stacked, with wide, tall and square matrices."""
    draw = np.random.default_rng(seed).normal
    block = {
        "attn": {"q": {"kernel": draw(size=(2, 4, 4)), "bias": draw(size=(2, 4))}},
        "mlp": {"in_": {"kernel": draw(size=(2, 4, 6))}, "out": {"kernel": draw(size=(2, 6, 4))}},
        "norm_1": {"gain": draw(size=(2, 4))},
        "residual": {"alpha_1": draw(size=(2,)), "gate_1": {"kernel": draw(size=(2, 4, 4))}},
    }
    tables = {"embed": draw(size=(5, 4)), "head": draw(size=(5, 4)), "positions": draw(size=(3, 4))}
    parts = tables | {"blocks": block, "norm_f": {"gain": draw(size=4)}}
    return jax.tree.map(lambda x: scale * x, parts)


def leaves(params) -> dict[str, np.ndarray]:
    """Returns arrays by path, `path@layer` for the blocks, as in a model without stacking."""
    out = {}
    for keys, leaf in jax.tree_util.tree_leaves_with_path(params):
        path = "/".join(entry.key for entry in keys)
        if keys[0].key == "blocks":
            out |= {f"{path}@{layer}": np.asarray(leaf)[layer] for layer in range(LAYERS)}
        else:
            out[path] = np.asarray(leaf)
    return out


def decays(path: str) -> bool:
    return "kernel" in path or path in ("embed", "head", "positions")


def numbers(**changed) -> dict[str, Any]:
    return jax.tree.map(np.float64, NUMBERS | changed)


def applied(config: OptimizerConfig, hp: dict[str, Any], params, all_grads) -> list[Any]:
    """Returns the parameters after each step, updated as in train_step."""

    @jax.jit
    def one(t, hp, params, state, grads):
        rule = transformation(config, hp, t, 10)
        updates, state = rule.update(grads, state, params)
        return jax.tree.map(jnp.add, params, updates), state

    with jax.numpy_dtype_promotion("standard"):
        state, out = transformation(config, hp, jnp.int32(0), 10).init(params), []
        for t, grads in enumerate(all_grads):
            params, state = one(np.int32(t), hp, params, state, grads)
            out.append(params)
    return out


# Directions: (memory of one parameter, gradient, parameter, t = 1, 2, ..., path) -> what lr is multiplied with.

BETA_1, BETA_2, EPS, MOMENTUM = 0.8, 0.95, 1e-3, 0.7


def np_sgd(memory, g, p, t, path):
    return g


def np_momentum(memory, g, p, t, path):
    memory["m"] = MOMENTUM * memory.get("m", 0.0) + g
    return memory["m"]


def np_nesterov(memory, g, p, t, path):
    memory["m"] = MOMENTUM * memory.get("m", 0.0) + g
    return g + MOMENTUM * memory["m"]


def np_adam(memory, g, p, t, path):
    memory["m"] = BETA_1 * memory.get("m", 0.0) + (1 - BETA_1) * g
    memory["v"] = BETA_2 * memory.get("v", 0.0) + (1 - BETA_2) * g**2
    return memory["m"] / (1 - BETA_1**t) / (np.sqrt(memory["v"] / (1 - BETA_2**t)) + EPS)


def np_lion(memory, g, p, t, path):
    m = memory.get("m", 0.0)
    memory["m"] = BETA_2 * m + (1 - BETA_2) * g
    return np.sign(BETA_1 * m + (1 - BETA_1) * g)


def np_rmsprop(memory, g, p, t, path):
    memory["v"] = BETA_2 * memory.get("v", 0.0) + (1 - BETA_2) * g**2
    return g / (np.sqrt(memory["v"]) + EPS)


def np_adagrad(memory, g, p, t, path):
    memory["v"] = memory.get("v", 0.0) + g**2
    return g / np.sqrt(memory["v"] + EPS)


def rms(x):
    return np.sqrt(np.mean(np.square(x)))


def np_adafactor(memory, g, p, t, path):
    """Shazeer & Stern 2018, algorithms 4 (matrices) and 5 (vectors), with negligible epsilon_1."""
    beta = 1 - t**-0.8
    if g.ndim == 2:
        memory["R"] = beta * memory.get("R", 0.0) + (1 - beta) * np.sum(g**2, axis=1)
        memory["C"] = beta * memory.get("C", 0.0) + (1 - beta) * np.sum(g**2, axis=0)
        v = np.outer(memory["R"], memory["C"]) / np.sum(memory["R"])
    else:
        memory["v"] = v = beta * memory.get("v", 0.0) + (1 - beta) * g**2
    u = g / np.sqrt(v)
    return max(1e-3, rms(p)) * u / max(1.0, rms(u))


def newton_schulz(m):
    """Jordan et al. 2024: five steps of an odd quintic that drives every singular value towards 1."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = m / (np.linalg.norm(m) + EPS)
    for _ in range(5):
        x = a * x + (b * x @ x.T + c * x @ x.T @ x @ x.T) @ x
    return x


def np_muon(memory, g, p, t, path):
    if "kernel" not in path or "residual" in path:
        return np_adam(memory, g, p, t, path)
    memory["m"] = MOMENTUM * memory.get("m", 0.0) + (1 - MOMENTUM) * g
    # Dozat's form of Nesterov's step, debiased: a common factor would not matter to an orthogonalised matrix.
    ahead = MOMENTUM * memory["m"] / (1 - MOMENTUM ** (t + 1)) + (1 - MOMENTUM) * g / (1 - MOMENTUM**t)
    return newton_schulz(ahead) * np.sqrt(max(1, g.shape[1] / g.shape[0]))


BY_HAND = {
    "sgd": np_sgd,
    "momentum": np_momentum,
    "nesterov": np_nesterov,
    "adam": np_adam,
    "adamw": np_adam,
    "lion": np_lion,
    "rmsprop": np_rmsprop,
    "adagrad": np_adagrad,
    "adafactor": np_adafactor,
    "muon": np_muon,
}


def expected(name: str, params, all_grads, l2: bool, rates=RATES):
    """Returns the parameters after all steps, in numpy."""
    p, memory = leaves(params), {path: {} for path in leaves(params)}
    for t, (grads, lr) in enumerate(zip(all_grads, rates, strict=True), 1):
        for path, g in leaves(grads).items():
            pull = NUMBERS["weight_decay"] * p[path] if decays(path) else 0.0
            step = BY_HAND[name](memory[path], g + (pull if l2 else 0.0), p[path], t, path)
            p[path] = p[path] - lr * (step + (0.0 if l2 else pull))
    return p


def assert_equal(got, wanted: dict[str, np.ndarray], rtol=1e-11, atol=1e-12):
    got = leaves(got)
    assert got.keys() == wanted.keys()
    for path, value in wanted.items():
        np.testing.assert_allclose(got[path], value, rtol=rtol, atol=atol, err_msg=path)


@pytest.mark.parametrize("decay", ["decoupled", *(pytest.param(x, marks=pytest.mark.slow) for x in ("l2", "auto"))])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_three_steps_are_the_paper_s(x64, name, decay):
    config = OptimizerConfig(name=name, schedule="linear", warmup=1, decay=decay)
    params, grads = tree(0), [tree(seed, 10.0**-seed) for seed in (1, 2, 3)]
    after = applied(config, numbers(), params, grads)[-1]
    tolerance = 1e-7 if name == "adafactor" else 1e-11  # optax computes adafactor's t^-0.8 in float32
    l2 = decay == "l2" or (decay == "auto" and name == "adam")
    assert_equal(after, expected(name, params, grads, l2), tolerance)


def test_l2_is_weight_decay_for_sgd_and_not_for_adam(x64):
    """Loshchilov & Hutter 2019, propositions 1 and 2."""
    params, grads = tree(0), [tree(1), tree(2)]

    def difference(name):
        one, other = (
            leaves(applied(OptimizerConfig(name=name, decay=decay), numbers(), params, grads)[-1])
            for decay in ("decoupled", "l2")
        )
        return {path: np.abs(one[path] - other[path]).max() for path in one}

    assert max(difference("sgd").values()) < 1e-15
    adam = difference("adam")
    assert all((gap > 1e-6) == decays(path) for path, gap in adam.items())


# Muon and stacked blocks


def test_muon_is_optax_s_muon_on_each_layer_by_itself(x64):
    config = OptimizerConfig(name="muon", schedule="constant", warmup=0)
    hp, params, grads = numbers(weight_decay=0.0), tree(0), [tree(seed) for seed in (1, 2, 3)]
    after = leaves(applied(config, hp, params, grads)[-1])
    rule = optax.contrib.muon(0.02, beta=0.7, eps=1e-3)
    ours = [path for path in leaves(params) if "kernel" in path and "residual" not in path]
    single = {path: leaves(params)[path] for path in ours}  # unstacked: two axes each
    state, update = rule.init(single), jax.jit(rule.update)
    with jax.numpy_dtype_promotion("standard"):
        for grad in grads:
            updates, state = update({path: leaves(grad)[path] for path in single}, state, single)
            single = jax.tree.map(jnp.add, single, updates)
    assert len(single) == 3 * LAYERS
    for path, p in single.items():
        np.testing.assert_allclose(after[path], p, rtol=1e-11, err_msg=path)


def test_muon_s_singular_values_are_near_one_in_every_layer(x64):
    """Gradient entries span two decades here, and layers differ by another three."""
    rng, width = np.random.default_rng(0), 8
    spectrum = np.geomspace(1.0, 1e-2, width)
    turns = [np.linalg.qr(rng.normal(size=(width, width)))[0] for _ in range(4)]
    kernel = np.stack([turns[0] * spectrum @ turns[1], 1e-3 * turns[2] * spectrum @ turns[3]])
    grads = {"blocks": {"attn": {"q": {"kernel": kernel}}}}
    config = OptimizerConfig(name="muon", schedule="constant", warmup=0)
    params = jax.tree.map(np.zeros_like, grads)
    (after,) = applied(config, numbers(lr=1.0, eps=1e-12), params, [grads])
    values = np.linalg.svd(after["blocks"]["attn"]["q"]["kernel"], compute_uv=False)
    assert values.shape == (2, width)
    assert values.min() > 0.5 and values.max() < 1.3


@pytest.mark.parametrize("name", ["muon", "adafactor"])
def test_a_layer_s_update_does_not_depend_on_the_other_layers(x64, name):
    config = OptimizerConfig(name=name, schedule="constant", warmup=0)
    params, grads, other = tree(0), tree(1), tree(1)
    foreign = tree(2, 1e3)["blocks"]
    other["blocks"] = jax.tree.map(lambda leaf, new: np.stack([leaf[0], new[1]]), other["blocks"], foreign)
    (one,), (two,) = (applied(config, numbers(), params, [g]) for g in (grads, other))
    one, two = leaves(one), leaves(two)
    for path in one:
        if not path.endswith("@1"):
            np.testing.assert_array_equal(one[path], two[path], err_msg=path)
    assert not np.allclose(one["blocks/attn/q/kernel@1"], two["blocks/attn/q/kernel@1"])
