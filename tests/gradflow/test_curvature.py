"""Curvature, Jacobians, noise and landscape against dense matrices and closed forms (float64)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from networks import WINDOWS, L, leaves, network, parameters
from train.core.loss import tapped_loss
from train.gradflow import jacobian
from train.gradflow.curvature import (
    along_line,
    critical_multiple,
    lanczos,
    preconditioned_sharpness,
    random_direction,
    sharpness,
)
from train.gradflow.noise import block_squares, noise
from train.gradflow.norms import log10, value
from train.gradflow.per_block import carries

KEY = jax.random.key(0)


def loss_of(net):
    loss = tapped_loss(net, WINDOWS, None, None)
    return lambda params: loss(params, None, None)[0]


def ends_of(matrix, iterations=24, seed=0):
    start = jax.random.normal(jax.random.key(seed), (len(matrix),), jnp.float64)
    return jax.jit(lambda s: lanczos(lambda v: jnp.asarray(matrix) @ v, s, iterations))(start)


@pytest.fixture(scope="module")
def dense():
    """Returns (loss, parameters, dense Hessian) of the smallest network."""
    jax.config.update("jax_enable_x64", True)
    net = network(layers=1, width=4, mlp_ratio=1)
    params = parameters(net)
    flat, unravel = ravel_pytree(params)
    loss = loss_of(net)
    hessian = np.asarray(jax.jit(jax.hessian(lambda x: loss(unravel(x))))(flat))
    yield loss, params, hessian
    jax.config.update("jax_enable_x64", False)


def test_sharpness_is_the_end_of_the_dense_spectrum(dense):
    loss, params, hessian = dense
    np.testing.assert_allclose(hessian, hessian.T, atol=1e-12)
    values = np.linalg.eigvalsh(hessian)
    assert values[0] < -1e-3  # a saddle, so both ends mean something
    result = jax.jit(lambda p: sharpness(loss, p, KEY, 60))(params)
    np.testing.assert_allclose([result.top, result.bottom], [values[-1], values[0]], rtol=1e-8)
    assert result.top_residual < 1e-6 and result.bottom_residual < 1e-6


@pytest.mark.slow
def test_a_residual_bounds_the_distance_to_an_eigenvalue(dense):
    """Holds after few iterations too, when nothing has converged."""
    loss, params, hessian = dense
    values = np.linalg.eigvalsh(hessian)
    result = jax.jit(lambda p: sharpness(loss, p, KEY, 3))(params)
    for value_, residual in ((result.top, result.top_residual), (result.bottom, result.bottom_residual)):
        assert residual > 1e-3
        assert np.abs(values - value_).min() <= residual
    assert values[0] <= result.bottom <= result.top <= values[-1]


@pytest.mark.slow
def test_preconditioned_sharpness_against_the_dense_matrix(dense):
    loss, params, hessian = dense
    flat, unravel = ravel_pytree(params)
    diagonal = np.random.default_rng(1).uniform(0.1, 3.0, flat.size)
    values = np.linalg.eigvals(hessian / diagonal[:, None]).real  # P^-1 H, as it stands in the paper
    result = jax.jit(lambda p: preconditioned_sharpness(loss, p, unravel(jnp.asarray(diagonal)), KEY, 60))(params)
    np.testing.assert_allclose([result.top, result.bottom], [values.max(), values.min()], rtol=1e-8)


@pytest.mark.parametrize(
    "diagonal",
    [
        [5.0, 0.0, 0.0, 0.0],
        [0.0, 0.0],
        [1e-30, 3e-30, 2e-30],
        *(pytest.param(x, marks=pytest.mark.slow) for x in ([3.0, 3.0, 3.0], [-1.0, -2.0, -4.0], [7.0])),
    ],
)
def test_lanczos_where_the_space_is_soon_exhausted(diagonal, x64):
    result, size = ends_of(np.diag(diagonal)), np.abs(diagonal).max()
    np.testing.assert_allclose([result.top, result.bottom], [max(diagonal), min(diagonal)], rtol=1e-9, atol=1e-9 * size)
    assert max(result.top_residual, result.bottom_residual) <= 1e-9 * size


def test_lanczos_keeps_its_basis_orthogonal(x64):
    """Without reorthogonalization copies of the converged top eigenvalue appear and the bottom does not converge."""
    diagonal = np.concatenate([[1e6], np.linspace(-1, 1, 200)])
    result = ends_of(np.diag(diagonal), 201)
    np.testing.assert_allclose([result.top, result.bottom], [1e6, -1], rtol=1e-9)


def numeric(net, params):
    """Returns the dense Jacobians of the blocks and of the stack for the first example."""
    anatomy = net.anatomy(params, WINDOWS[:1, :-1])
    entered = carries(anatomy)
    blocks = []
    for layer in range(net.config.layers):
        carry = jax.tree.map(lambda leaf, i=layer: leaf[i], entered)
        flat, unravel = ravel_pytree(carry)
        weights = jax.tree.map(lambda leaf, i=layer: leaf[i], anatomy.blocks)

        def block(x, weights=weights, layer=layer, unravel=unravel):
            return ravel_pytree(anatomy.block(weights, jnp.int32(layer), unravel(x)))[0]

        blocks.append(jax.jacfwd(block)(flat))
    whole = jnp.eye(blocks[0].shape[0])
    for matrix in blocks:
        whole = matrix @ whole
    return blocks, whole


@pytest.mark.parametrize("rule", ["pre_ln", pytest.param("value_residual", marks=pytest.mark.slow)])
def test_jacobians_exact_and_by_iteration(rule, x64):
    net = network(residual=rule, layers=2)
    params = parameters(net)
    blocks, whole = jax.jit(lambda p: numeric(net, p))(params)
    wanted = [np.linalg.svd(matrix, compute_uv=False) for matrix in (*blocks, whole)]
    exact = jax.jit(lambda p: jacobian.jacobians(net.anatomy(p, WINDOWS[:1, :-1]), KEY))(params)
    near = jax.jit(lambda p: jacobian.jacobians(net.anatomy(p, WINDOWS[:1, :-1]), KEY, 300, 400, exact=0))(params)
    for index, values in enumerate(wanted):
        # The blocks, and above them the whole stack.
        one, two = (
            jax.tree.map(lambda block, stack, i=index: jnp.append(block, stack)[i], some.block, some.stack)
            for some in (exact, near)
        )
        rms = np.sqrt(np.mean(values**2))
        got = [value(x) for x in (one.largest, one.rms, one.median, one.smallest)]
        wanted_here = np.array([values[0], rms, np.median(values), values[-1]])
        unknown = wanted_here < len(values) * np.finfo(float).eps * values[0]
        np.testing.assert_allclose(got, np.where(unknown, np.nan, wanted_here), rtol=1e-7)
        np.testing.assert_allclose(value(two.largest), values[0], rtol=1e-3)
        np.testing.assert_allclose(value(two.rms), rms, rtol=0.15)
        assert np.isnan(value(two.median)) and two.residual < 0.05


@pytest.mark.slow
def test_the_stack_of_a_deep_plain_network_has_no_range(x64):
    """Exact and iterated spectra of a product of 40 Jacobians far below float32's range, in float32 and float64."""
    small, logs = {"layers": 40, "residual": "none", "norm": "none"}, {}
    for dtype in ("float32", "float64"):
        net = network(dtype, **small)
        params = parameters(net, 0.01)
        for exact in (1024, 0):
            spectra = jax.jit(
                lambda p, n=net, e=exact: jacobian.jacobians(n.anatomy(p, WINDOWS[:1, :-1]), KEY, exact=e)
            )
            spectrum = spectra(params)
            logs[dtype, exact] = float(log10(spectrum.stack.largest))
    assert logs["float64", 1024] < -100
    np.testing.assert_allclose(list(logs.values()), logs["float64", 1024], atol=0.02)


def test_noise_against_its_definition(x64):
    """The gradient of an example is the example, so |G|^2 and the trace follow from McCandlish's formulas."""
    rng = np.random.default_rng(0)
    batches = rng.normal(size=(3, 8, 5)) + 2.0
    result = noise(lambda batch, _: {"w": jnp.mean(batch, axis=0)}, jnp.asarray(batches), 4)
    big = np.mean([np.sum(b.mean(0) ** 2) for b in batches])
    small = np.mean([np.sum(b[i : i + 2].mean(0) ** 2) for b in batches for i in range(0, 8, 2)])
    np.testing.assert_allclose(value(result.gradient), (8 * big - 2 * small) / (8 - 2), rtol=1e-12)
    np.testing.assert_allclose(value(result.trace), (small - big) / (1 / 2 - 1 / 8), rtol=1e-12)


def test_noise_finds_the_variance_that_was_put_in(x64):
    """Examples are (3, 4) plus noise of variances 1 and 9: |G|^2 = 25, S = 10, and a noise scale of 0.4 examples."""
    rng = np.random.default_rng(0)
    batches = np.array([3.0, 4.0]) + rng.normal(size=(2000, 16, 2)) * np.array([1.0, 3.0])
    result = noise(lambda batch, _: jnp.mean(batch, axis=0), jnp.asarray(batches), 8)
    np.testing.assert_allclose([value(result.gradient), value(result.trace)], [25, 10], rtol=0.03)
    still = noise(lambda batch, _: jnp.mean(batch, axis=0), jnp.ones((2, 4, 3)) * 1e-150, 2)
    assert abs(float(log10(still.gradient)) - (-300 + np.log10(3))) < 1e-9  # of squares, nothing underflows


@pytest.mark.parametrize("parts", [1, 3, 16])
def test_noise_needs_parts_that_fit(parts, wording):
    with wording.raises(ValueError) as caught:
        noise(lambda batch, _: jnp.mean(batch, axis=0), jnp.ones((2, 8, 3)), parts)
    assert str(caught.value).endswith(f" {parts}")


def test_a_line_through_a_parabola(x64):
    params = {"a": jnp.array([1.0, 2.0]), "b": jnp.array(3.0)}
    line = along_line(
        lambda p: jnp.sum(p["a"] ** 2) + p["b"], params, {"a": jnp.ones(2), "b": jnp.array(-1.0)}, jnp.arange(-2.0, 3.0)
    )
    np.testing.assert_allclose(line, [(1 + t) ** 2 + (2 + t) ** 2 + 3 - t for t in range(-2, 3)])


critical = jax.jit(critical_multiple, static_argnums=0)


@pytest.mark.parametrize(
    "rate", [1e-4, 0.26, 1e4, *(pytest.param(x, marks=pytest.mark.slow) for x in (0.03, 0.2, 3.0))]
)
def test_critical_sharpness_of_a_parabola_is_its_rayleigh_quotient(rate, x64):
    """Along a step of gradient descent 2 / eta_c = g.H.g / g.g, be the step far too small or far too large."""
    rng = np.random.default_rng(0)
    root = rng.normal(size=(6, 6))
    hessian, x = jnp.asarray(root @ root.T), jnp.asarray(rng.normal(size=6))

    def loss(p):
        return p["a"] @ hessian @ p["a"] / 2 + 3.0

    g = jax.grad(loss)({"a": x})["a"]
    multiple = critical(loss, {"a": x}, {"a": -rate * g})
    np.testing.assert_allclose(2 / (multiple * rate), g @ hessian @ g / (g @ g), rtol=1e-7)


def test_where_a_line_stops_to_fall(x64):
    """At the other side of a well, before a wall of nan, and nowhere."""
    at = jnp.zeros(())
    well = critical(lambda x: jnp.cosh(x - 2.5), at, jnp.ones(()))
    assert float(well) == pytest.approx(5, rel=1e-2)
    assert float(critical(lambda x: jnp.where(x < 3.25, -x, jnp.nan), at, jnp.ones(()))) == pytest.approx(
        3.25, abs=0.13
    )
    for loss in (lambda x: x, lambda x: -x, lambda x: 0 * x, lambda x: x * jnp.nan):
        assert np.isnan(critical(loss, at, jnp.ones(())))


def test_squares_by_block(x64):
    net = network()
    grads = parameters(net)
    actual = value(jax.jit(block_squares)(grads))
    wanted = [sum(np.sum(np.square(leaf[layer])) for leaf in jax.tree.leaves(grads["blocks"])) for layer in range(L)]
    np.testing.assert_allclose(actual, [*wanted, sum(np.sum(leaf**2) for leaf in leaves(grads).values())], rtol=1e-12)


def test_a_random_direction_is_as_long_as_each_matrix(x64):
    params = parameters(network())
    drawn, given = leaves(jax.jit(random_direction)(params, KEY)), leaves(params)
    for path, leaf in drawn.items():
        axes, own = tuple(range(int(path.startswith("blocks/")), leaf.ndim)), given[path]
        length, wanted = (np.sqrt(np.sum(np.square(x), axis=axes)) for x in (leaf, own))
        np.testing.assert_allclose(length, wanted, rtol=1e-12)
        assert abs(np.sum(leaf * own)) < 0.9 * np.sum(own**2)
