"""Exact laws of the rules of 2024 to 2026, at the start and with synthetic branches, in float64."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import networks
from model.config import ModelConfig, problems
from model.layers import normalize
from model.network import Network
from model.residual import Context, Sublayer, numbers_of, rule_of
from networks import TOKENS, B, D, L, T, changed, leaves, logits, parameters, same, untapped
from train.core.optimizer import FUNCTIONS, transformation
from train.core.state import hparams_of

N, WIDE, DEEP = 16, 128, 12  # tokens, width and blocks of a synthetic network


def network(residual: Any, **model: Any) -> Network:
    return networks.network(residual=residual, **({"norm_eps": 0.0, "tied_head": False} | model))


def started(net: Network) -> dict[str, Any]:
    """Returns generic parameters, but for the rule's own and the gains, which have their initial values."""
    initial, params = jax.jit(lambda: net.init(0))(), parameters(net)
    keep = {name: initial["blocks"][name] for name in initial["blocks"] if name not in ("attn", "mlp")}
    return initial | {"embed": params["embed"], "blocks": params["blocks"] | keep}


class Synthetic:
    """A rule without a network: its sublayers one after the other, each with a branch that is given."""

    def __init__(self, residual: Any, layers: int = DEEP) -> None:
        config = ModelConfig(layers=layers, width=WIDE, norm_eps=0.0, residual=residual)
        self.rule, self.layers = rule_of(config), layers
        numbers = {name: jnp.asarray(value, jnp.float64) for name, value in numbers_of(config).items()}
        self.context = Context(numbers, (1, N))
        self.x = normalize(jnp.asarray(np.random.default_rng(0).normal(size=(N, WIDE))), "rms", 0.0)

    def run(self, x: Any, branch: Any, own: Any = None, carry: Any = None) -> list[Any]:
        """Returns the carry after every sublayer; branch(h, k) is F of the k-th."""
        carry = self.rule.begin(x, self.context) if carry is None else carry
        carries = [carry]
        for k in range(2 * self.layers):
            norms = {slot: lambda h: normalize(h, "rms", 0.0) for slot in self.rule.norm_slots}
            sub = Sublayer(k % 2, lambda h, *_, k=k: (branch(h, k), None), norms, own or {}, own or {})
            carries.append(self.rule.sublayer(carries[-1], sub, self.context._replace(layer=jnp.int32(k // 2))))
        return carries


def noise(sigma: float, count: int = 2 * DEEP) -> np.ndarray:
    """Independent outputs of mean square sigma^2, [count, N, WIDE]."""
    return sigma * np.random.default_rng(1).normal(size=(count, N, WIDE))


def mean_square(x: Any) -> float:
    return float(np.mean(np.square(x)))


def test_res_post_norm_adds_increments_of_rms_1_and_its_output_matrices_do_not_shrink(x64):
    net = network("res_post_norm")
    params = started(net)
    one = Synthetic("res_post_norm")
    streams = one.run(one.x, lambda h, k: noise(3.0)[k] * h)
    for before, after in zip(streams, streams[1:], strict=False):
        same(np.sqrt(np.mean(np.square(after - before), axis=1)), np.ones(N))
    grads = untapped(net, params)[1]
    for part, name in (("attn", "o"), ("mlp", "out")):
        weight, grad = (tree["blocks"][part][name]["kernel"] for tree in (params, grads))
        inner = np.sum(weight * grad, axis=(1, 2))
        assert (np.abs(inner) < 1e-13 * np.linalg.norm(weight, axis=(1, 2)) * np.linalg.norm(grad, axis=(1, 2))).all()


@pytest.mark.parametrize(
    ("residual", "sigma", "share"),
    [
        ("keel", 1.0, (1 + 1 / (2 * DEEP) ** 2) ** -DEEP),
        ("keel", 8.0, (1 + 64 / (2 * DEEP) ** 2) ** -DEEP),
        ("post_ln", 1.0, 2.0**-DEEP),
    ],
)
def test_the_share_of_delta_that_the_skips_of_post_norms_keep(x64, residual, sigma, share):
    """n / 2 is DEEP. A norm also takes delta's part along the stream away, 1 of WIDE directions."""
    one, outputs = Synthetic(residual), noise(sigma)
    end, pull = jax.vjp(lambda x: one.run(x, lambda h, k: jnp.asarray(outputs[k]))[-1], one.x)
    delta = np.random.default_rng(2).normal(size=end.shape)
    result = np.linalg.norm(pull(jnp.asarray(delta))[0]) / np.linalg.norm(delta)
    assert result == pytest.approx(share, rel=2 * DEEP / WIDE)


@pytest.mark.parametrize(
    ("residual", "growth"), [("lns", sum(1 / block for block in range(1, DEEP + 1))), ("pre_ln", DEEP)]
)
def test_the_stream_of_lns_grows_by_the_harmonic_number(x64, residual, growth):
    """1 + 2 sigma^2 H_L, and 1 + 2 sigma^2 L of pre_ln, for branches that turn their input: |F(h)| = sigma |h|."""
    one, sigma = Synthetic(residual), 2.0
    q, r = np.linalg.qr(np.random.default_rng(3).normal(size=(2 * DEEP, WIDE, WIDE)))
    # Uniform turns; LAPACK's signs favour the opposite of the input.
    turns = q * np.sign(np.diagonal(r, axis1=1, axis2=2))[:, None]
    end = one.run(one.x, lambda h, k: sigma * h @ turns[k])[-1]
    assert mean_square(end) == pytest.approx(1 + 2 * sigma**2 * growth, rel=0.05)


def test_orthogonal_updates_add_squares(x64):
    """|x'|^2 = |x|^2 + |y_perp|^2 for each token, so the stream never shrinks; also where squares would underflow."""
    one, outputs = Synthetic("orthogonal"), noise(2.0)
    streams = one.run(one.x, lambda h, k: jnp.asarray(outputs[k]) + h)
    for k, (before, after) in enumerate(zip(streams, streams[1:], strict=False)):
        y, unit = outputs[k] + normalize(before, "rms", 0.0), before / np.linalg.norm(before, axis=1, keepdims=True)
        across = y - np.sum(y * unit, axis=1, keepdims=True) * unit
        same(np.sum(after**2, axis=1), np.sum(before**2, axis=1) + np.sum(across**2, axis=1))


@pytest.mark.slow
def test_gpas_at_gate_0_is_pre_ln_bitwise_and_its_gate_s_gradient_is_minus_half_of_delta_times_z(x64):
    net, usual = network("gpas"), network("pre_ln")
    np.testing.assert_array_equal(*(np.asarray(logits(each, started(each))) for each in (net, usual)))
    one, outputs, c = Synthetic("gpas", 1), noise(1.0), np.random.default_rng(4).normal(size=(N, WIDE))
    states = one.run(one.x, lambda h, k: jnp.asarray(outputs[k]), {"gate": jnp.asarray(0.0)})

    def loss(gate: Any) -> Any:
        return jnp.sum(c * one.run(one.x, lambda h, k: jnp.asarray(outputs[k]), {"gate": gate})[-1])

    # Both sublayers of a block have its gate; outputs are constant, so delta is c at both. At any gate it passes whole.
    opened = {"gate": jnp.asarray(1.0)}
    end, pull = jax.vjp(lambda x: one.run(x, lambda h, k: jnp.asarray(outputs[k]), opened)[-1], one.x)
    same(pull(jnp.asarray(c))[0], c)
    share = 1 - 1 / (1 + np.exp(-1))
    same(end, share * (share * (one.x + outputs[0]) + outputs[1]))
    assert float(jax.grad(loss)(0.0)) == pytest.approx(float(-0.5 * jnp.sum(c * (states[1] + states[2]))), rel=1e-12)


def test_siamese_s_second_stream_is_the_sum_of_all_branches(x64):
    one, outputs = Synthetic("siamese"), noise(1.0)
    u, y = one.run(one.x, lambda h, k: jnp.asarray(outputs[k]))[-1]
    same(y, one.x + outputs.sum(axis=0))
    assert mean_square(u) == pytest.approx(1 + 1 / (2 * DEEP), rel=0.02)  # a normed stream, and the last branch


@pytest.mark.slow
def test_denseformer_starts_as_pre_ln_and_the_gradient_of_its_weights_is_delta_times_the_outputs(x64):
    """dL/dalpha_lj = <delta after block l, X_j>, and 0 for the blocks above."""
    net, usual = network("denseformer"), network("pre_ln")
    params = started(net)
    np.testing.assert_array_equal(*(np.asarray(logits(each, started(each))) for each in (net, usual)))
    dense = jax.grad(lambda offsets: networks.dense_loss(net, params, params["head"], offsets))
    delta = jax.jit(dense)(jnp.zeros((L + 1, B * T, D)))
    anatomy = usual.anatomy(started(usual), TOKENS)
    outputs, run = [anatomy.carry], jax.jit(anatomy.block)
    for layer in range(L):
        block = jax.tree.map(lambda leaf, layer=layer: leaf[layer], anatomy.blocks)
        outputs.append(run(block, jnp.int32(layer), outputs[-1]))
    actual = untapped(net, params)[1]["blocks"]["residual"]["alpha"]
    expected = [[np.sum(delta[n] * outputs[j]) if j <= n else 0.0 for j in range(L + 1)] for n in range(1, L + 1)]
    same(actual, np.array(expected), rtol=1e-9, atol=1e-15)


@pytest.mark.slow
@pytest.mark.parametrize(("share", "other"), [(0.0, "pre_ln"), (1.0, "post_ln")])
def test_mix_ln_is_pre_ln_and_post_ln_at_its_ends(x64, share, other):
    """Its final norm changes nothing after a norm, at gains of 1 and without an epsilon."""
    net, usual = network({"rule": "mix_ln", "share": share}), network(other)
    same(logits(net, started(net)), logits(usual, started(usual)), rtol=1e-10, atol=1e-13)


def test_one_block_in_four_is_post_ln_by_default(x64):
    one, outputs = Synthetic("mix_ln"), noise(1.0)
    sizes = [mean_square(x) for x in one.run(one.x, lambda h, k: jnp.asarray(outputs[k]))]
    assert [abs(size - 1) < 1e-9 for size in sizes] == [k <= 2 * DEEP // 4 for k in range(2 * DEEP + 1)]


@pytest.mark.parametrize("mixing", ["circulant", "lite"])
def test_mixings_that_are_doubly_stochastic_exactly(x64, mixing):
    """Any logits: rows and columns of H_res sum to 1 to rounding, where Sinkhorn's 20 rounds leave 1e-3 of some."""
    rule = rule_of(ModelConfig(width=WIDE, residual={"rule": "mhc", "mixing": mixing}))  # pyright: ignore[reportArgumentType]
    count, rng = len(rule.starts()["across"]), np.random.default_rng(5)  # pyright: ignore[reportAttributeAccessIssue]
    assert count == {"circulant": 4, "lite": 24}[mixing]
    across = mixed(rule, {"across": 5 * rng.normal(size=count)})
    assert (across >= 0).all()
    assert across.std() > 0.1
    same((across.sum(axis=0), across.sum(axis=1)), (np.ones(4), np.ones(4)), rtol=1e-14)


def mixed(rule: Any, biases: dict[str, np.ndarray]) -> np.ndarray:
    """Returns H_res [n, n] of a sublayer with these logits and no dynamic part."""
    logits = {name: jnp.asarray(start) for name, start in (rule.starts() | biases).items()}
    kernels = {name: jnp.zeros((rule.n * WIDE, len(start))) for name, start in logits.items()}
    own = {name: {"kernel": kernels[name], "bias": logits[name], "gate": jnp.asarray(0.01)} for name in logits}
    context = Context({"norm_eps": jnp.asarray(0.0), "skip_scale": jnp.asarray(1.0)}, (1, 1))
    sub = Sublayer(0, lambda h, *_: (h, None), {"in": lambda h: h}, own, {})
    return np.asarray(rule.weights(jnp.ones((rule.n, 1, WIDE)), sub, context)[1][..., 0])


@pytest.mark.parametrize(("mixing", "others"), [("sinkhorn", 3), ("circulant", 3), ("lite", 23), ("identity", 0)])
def test_how_much_of_the_difference_of_streams_is_left_after_24_sublayers(x64, mixing, others):
    """sigma_2 of the product of all H_res is ((1 - e^-8) / (1 + others e^-8))^24 at the start: 0.968319 of Sinkhorn."""
    start = mixed(rule_of(ModelConfig(width=WIDE, residual={"rule": "mhc", "mixing": mixing})), {})  # pyright: ignore[reportArgumentType]
    expected = ((1 - np.exp(-8)) / (1 + others * np.exp(-8))) ** 24 if others else 1.0
    product = np.linalg.matrix_power(start, 24)
    assert np.linalg.svd(product)[1][1] == pytest.approx(expected, rel=1e-6)
    assert others != 3 or expected == pytest.approx(0.968319, abs=1e-6)


@pytest.mark.parametrize(
    ("residual", "wrong"),
    [
        ({"rule": "mhc", "mixing": "lite", "streams": 7}, "residual.streams"),
        ({"rule": "mhc", "mixing": "circulant", "rounds": 3}, "residual.rounds"),
        ({"rule": "attnres", "heads": 3}, "residual.heads"),
    ],
)
def test_options_that_do_not_fit_the_model_are_named(residual, wrong):
    assert [key for key, _ in problems(ModelConfig(residual=residual))] == [wrong]


# --- CompleteP ---


def test_completep_is_pre_ln_bitwise_at_its_base_depth(x64):
    net, usual = network({"rule": "completep", "base_layers": L}), network("pre_ln")
    np.testing.assert_array_equal(*(np.asarray(logits(each, started(each))) for each in (net, usual)))


@pytest.mark.parametrize(("name", "power"), [("adam", 0), pytest.param("sgd", 1, marks=pytest.mark.slow)])
def test_completep_s_optimizer_divides_the_factor_out_of_the_blocks_gradients(tiny, name, power):
    """A step of adam with the gradient g / c and its epsilon over c is one with g: c = 3 with L = 3 and L_base = 1."""
    keys = {"optimizer.name": name, "optimizer.eps": 0.5, "optimizer.weight_decay": 0.0, "optimizer.lr": 0.1}
    keys |= {"optimizer.warmup": 0, "optimizer.schedule": "constant", "model.layers": L}

    def step(residual: Any) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        config = tiny(keys | {"model.residual": residual}).variants[0].config
        grads = parameters(Network(config.model, 11, 4, "float32"))
        rule = transformation(config.optimizer, hparams_of(config).optimizer, jnp.int32(0), 10, config.model)
        with jax.numpy_dtype_promotion("standard"):  # as train/core/step.py has it
            return leaves(grads), leaves(jax.jit(lambda grads: rule.update(grads, rule.init(grads), grads)[0])(grads))

    (grads, base), (_, deep) = step("pre_ln"), step({"rule": "completep", "base_layers": 1})
    for path, g in grads.items():
        if not path.startswith("blocks/"):
            same(deep[path], base[path])
        else:
            same(deep[path], 3 * base[path] if power else -0.1 * g / (np.abs(g) + 0.5 / 3), rtol=2e-5)


def test_a_user_s_own_optimizer_gets_gradients_without_completep_s_factor(tiny, monkeypatch):
    monkeypatch.setitem(FUNCTIONS, "mine:plain", lambda numbers, lr: optax.identity())
    keys = {"optimizer.name": "mine:plain", "model.residual": {"rule": "completep", "base_layers": 1}}
    config = tiny(keys | {"model.layers": L}).variants[0].config
    grads = parameters(Network(config.model, 11, 4, "float32"))
    rule = transformation(config.optimizer, hparams_of(config).optimizer, jnp.int32(0), 10, config.model)
    for path, update in leaves(rule.update(grads, rule.init(grads), grads)[0]).items():
        same(update, leaves(grads)[path] * (L if path.startswith("blocks/") else 1))


# --- norms without statistics ---


@pytest.mark.parametrize("kind", [pytest.param("dyt", marks=pytest.mark.slow), "derf"])
def test_dyt_and_derf_keep_the_signs_of_large_entries_alone(x64, kind):
    """tanh and erf of each entry by itself: a stream of 1e8 gives logits of signs, where rms would keep its shape."""
    net = network("pre_ln", norm=kind, positions="none")
    params = jax.jit(lambda: net.init(0))()
    assert set(params["norm_f"]) == {"gain", "alpha"} | ({"shift"} if kind == "derf" else set())
    np.testing.assert_array_equal(params["blocks"]["norm_1"]["alpha"], np.full(L, 0.5))
    large = changed(params, "embed", lambda table: 1e8 * table)
    wanted = np.sign(np.asarray(params["embed"])[TOKENS.reshape(-1)]) @ np.asarray(params["head"]).T
    same(logits(net, large), wanted, rtol=1e-12)
    assert np.abs(untapped(net, parameters(net))[1]["blocks"]["norm_2"]["alpha"]).min() > 0
