"""Products, cosines, parts, ranks, zeros and histograms of gradients against numpy on whole vectors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from networks import B, L, T, V, changed, network, parameters, tapped
from train.gradflow import delta, gradients
from train.gradflow.delta import Backward
from train.gradflow.gradients import OCTAVES, edges
from train.gradflow.norms import named, value

WINDOWS = [np.random.default_rng(i).integers(0, V, size=(B, T + 1)).astype(np.int32) for i in (0, 1)]


# Op by op each of them would compile a hundred programs.
cosines, histogram, zero_fraction = map(jax.jit, (gradients.cosines, gradients.histogram, gradients.zero_fraction))
true_gradients = jax.jit(delta.true_gradients)


def result_of(net, params, windows) -> Backward:
    return tapped(net, params, None, windows)[1]


def flat(tree, layer=None):
    leaves = [np.asarray(leaf if layer is None else leaf[layer], np.float64).ravel() for leaf in jax.tree.leaves(tree)]
    return np.concatenate(leaves)


def angle(a, b):
    return a @ b / np.linalg.norm(a) / np.linalg.norm(b)


@pytest.mark.parametrize("tied", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_cosines_are_those_of_the_whole_vectors(tied, x64):
    net = network(tied_head=tied)
    params = parameters(net)
    one, two = (result_of(net, params, windows) for windows in WINDOWS)
    a, b = true_gradients(one), true_gradients(two)
    result = cosines(one, two)
    np.testing.assert_allclose(result.whole, angle(flat(a), flat(b)), rtol=1e-9)
    layers = [angle(flat(a["blocks"], layer), flat(b["blocks"], layer)) for layer in range(L)]
    np.testing.assert_allclose(result.layer, layers, rtol=1e-9)
    assert not np.allclose(result.layer, result.whole, rtol=1e-2)
    same = cosines(one, one)
    np.testing.assert_allclose([*same.layer, same.whole], 1, rtol=1e-12)


def test_cosines_do_not_mind_the_scale():
    """Gradients of 1e-60 in float32, through separate exponents."""
    params = parameters(network("float32"))
    one, two = (
        Backward(each, each["embed"], jnp.zeros(L + 1), None, None)  # pyright: ignore[reportArgumentType]
        for each in (params, jax.tree.map(lambda leaf: jnp.asarray(np.roll(leaf, 1)), params))
    )
    small = one._replace(exponents=one.exponents - 200)
    np.testing.assert_allclose(cosines(small, two).layer, cosines(one, two).layer, rtol=1e-5)
    turned = one._replace(params=jax.tree.map(jnp.negative, one.params))
    np.testing.assert_allclose(cosines(turned, one).layer, -1, rtol=1e-5)
    nothing = one._replace(params=jax.tree.map(jnp.zeros_like, one.params))
    assert np.isnan(cosines(nothing, one).layer).all()


def test_zeros_are_counted_a_matrix_and_a_layer(x64):
    params = parameters(network(bias=True))
    one = Backward(params, None, jnp.zeros(L + 1), None, None)  # pyright: ignore[reportArgumentType]
    blocks = params["blocks"]
    # Two of eight rows.
    cut = one._replace(params=changed(one.params, "blocks/attn/o/kernel", lambda kernel: kernel.at[1, :2].set(0)))
    before, after = zero_fraction(one), zero_fraction(cut)
    np.testing.assert_allclose(after["attn_o"], [0, 0.25, 0])
    assert set(after) == {*named(blocks), "layer"}
    size = flat(blocks, 0).size
    np.testing.assert_allclose(np.asarray(after["layer"]) - np.asarray(before["layer"]), [0, 16 / size, 0], atol=1e-12)


def made(entries, exponent=0.0):
    """Returns a backward pass of one layer with these gradients."""
    blocks = {"attn": {"q": {"kernel": jnp.asarray(entries, jnp.float32)[None]}}}
    return Backward({"blocks": blocks}, None, jnp.array([0.0, exponent]), None, None)  # pyright: ignore[reportArgumentType]


def test_a_histogram_by_hand():
    result = histogram(made([8.0, -8.0, 7.9, 4.0, 3.9, 1.0, 0.0, -0.0]))
    counts = np.zeros(OCTAVES)
    counts[[0, 1, 2, 3]] = [2, 2, 1, 1]  # 8 <= |g| < 16; 4 to 8; 2 to 4; 1 to 2
    np.testing.assert_array_equal(result.counts[0], counts)
    assert (float(result.zeros[0]), float(result.top[0])) == (2, 4)
    np.testing.assert_allclose(10 ** edges(float(result.top[0]))[:5], [16, 8, 4, 2, 1])


def test_a_histogram_has_no_range():
    entries = np.array([3e-38, 1.0, 2.0**-70], np.float32)
    result = histogram(made(entries, exponent=-300.0))
    assert float(result.top[0]) == -299
    assert result.counts[0, 0] == 1 and result.counts[0, -1] == 2 and result.zeros[0] == 0
    assert edges(-299.0)[0] == pytest.approx(-299 * np.log10(2))


def test_a_histogram_counts_every_entry(x64):
    net = network()
    one = result_of(net, parameters(net), WINDOWS[0])
    actual = histogram(one)
    for layer in range(L):
        g = np.abs(flat(true_gradients(one)["blocks"], layer))
        assert actual.counts[layer].sum() + actual.zeros[layer] == g.size
        low = 10.0 ** edges(float(actual.top[layer]))
        wanted = [((g >= 2.0**-1 * top) & (g < top)).sum() for top in low[:6]]
        np.testing.assert_array_equal(actual.counts[layer][:6], wanted)


def parts_by_hand(a, delta):
    """Returns (G, its mean part, its covariance part) of inputs [N, D] and cotangents [N, F], by numpy."""
    a, delta = np.asarray(a), np.asarray(delta)
    centred, spread = a - a.mean(0), delta - delta.mean(0)
    return a.T @ delta, len(a) * np.outer(a.mean(0), delta.mean(0)), np.einsum("nd,nf->df", centred, spread)


def shares_of(a, delta):
    """Returns the shares by `mean_shares` for inputs [L, N, D] and cotangents [L, N, F]."""
    gradient = jnp.einsum("lnd,lnf->ldf", a, delta)
    share = jax.jit(gradients.mean_shares)({"w": gradient}, {"w": jnp.sum(delta, 1)}, {"w": jnp.mean(a, 1)})
    for part in ("mean", "covariance"):  # one matrix is the whole layer
        np.testing.assert_array_equal(*(value(getattr(share[tag], part)) for tag in ("w", "layer")))
    return value(share["w"].mean), value(share["w"].covariance)


def test_the_parts_of_a_gradient(x64):
    rng = np.random.default_rng(0)
    a, delta = jnp.asarray(rng.normal(size=(3, 8, 4)) + 1), jnp.asarray(rng.normal(size=(3, 8, 5)) + 0.5)
    delta = delta.at[2].set(0)
    mean, covariance = shares_of(a, delta)
    for layer in range(2):
        whole, *parts = parts_by_hand(a[layer], delta[layer])
        np.testing.assert_allclose(parts[0] + parts[1], whole, rtol=1e-12)
        wanted = [np.linalg.norm(part) / np.linalg.norm(whole) for part in parts]
        np.testing.assert_allclose([mean[layer], covariance[layer]], wanted, rtol=1e-12)
    assert np.isnan([mean[2], covariance[2]]).all()  # no gradient has no parts


def test_tokens_that_are_alike_leave_the_mean_part_alone():
    alike = jnp.tile(jnp.arange(1.0, 5.0), (1, 8, 1))
    delta = jnp.asarray(np.random.default_rng(0).integers(-9, 9, size=(1, 8, 3)), jnp.float32)
    for a, d in ((alike, delta), (delta, alike)):
        np.testing.assert_array_equal(shares_of(a, d), [[1.0], [0.0]])  # exactly
    mean, covariance = shares_of(alike + 1e-6 * jax.random.normal(jax.random.key(0), alike.shape), delta / 7)
    np.testing.assert_allclose([mean, covariance], [[1.0], [np.nan]], atol=1e-5)  # lost in the rounding
    mean, covariance = shares_of(delta - jnp.mean(delta, 1, keepdims=True), delta)
    np.testing.assert_allclose([mean, covariance], [[0.0], [1.0]], atol=1e-6)


@pytest.mark.parametrize(
    "shape", [(5, 3), (1, 6), *(pytest.param(x, marks=pytest.mark.slow) for x in ((3, 5), (4, 4)))]
)
def test_the_stable_rank_by_svd(shape, x64):
    x = np.random.default_rng(0).normal(size=(2, *shape))
    values = np.linalg.svd(x, compute_uv=False)
    wanted = np.sum(values**2, axis=-1) / values[:, 0] ** 2
    for scale in (1, 1e-200):
        np.testing.assert_allclose(gradients.stable_rank(jnp.asarray(scale * x)), wanted, rtol=1e-12)
    assert float(gradients.stable_rank(jnp.eye(4))) == 4
    assert np.isnan(gradients.stable_rank(jnp.zeros((2, 3))))


def test_nothing_but_zeros():
    result = histogram(made([0.0, 0.0]))
    assert result.counts.sum() == 0 and result.zeros[0] == 2
