"""The JSON of a probe: zeros that are exact, and zeros that may only be too small for the dtype."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model.network import Network
from model.residual import numbers_of
from networks import changed, parameters
from train.core.probe import as_json, measure


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["hyper_connections", "mhc"])
def test_what_acts_through_the_skip_alone_has_a_gradient_of_exactly_zero_without_it(rule, tiny):
    """Also where a weight is so small (1e-7 after a step from zero) that other zeros are in doubt."""
    residual = {"rule": rule, "streams": 2} | ({"dynamic": True} if rule == "hyper_connections" else {})
    config = tiny({"model.residual": residual}).variants[0].config
    network = Network(config.model, 7, 4)

    def tiny_kernels(own):
        return jax.tree_util.tree_map_with_path(
            lambda path, leaf: jnp.full_like(leaf, 1e-8) if path[-1].key == "kernel" else leaf, own
        )

    params = changed(parameters(network, 0.1), "blocks/residual", tiny_kernels)
    params = changed(params, "blocks/mlp/out/kernel", jnp.zeros_like)
    windows = np.random.default_rng(0).integers(0, 7, (2, 5)).astype(np.int32)
    probe = jax.jit(lambda params: measure(network, params, windows, numbers_of(config.model)))(params)
    without = as_json(config, network, params, jax.device_get(probe))["grad_without"]
    across = {name: values for name, values in without.items() if "across" in name}
    assert len(across) == 6
    assert all(values == [0.0, 0.0] for values in across.values()), across
    assert without["mlp_in"] == [None, None]  # behind a matrix of zeros, but no equation of the rule says so
