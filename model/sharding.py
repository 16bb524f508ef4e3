"""Layout of activations on a device mesh, as constraints for the compiler. Without a mesh they do nothing.

The mesh is the ambient one (`jax.set_mesh`) with the axes data, fsdp and tensor. Left to itself the compiler lays the
stream out as the weights are, over its width, and inserts all-to-alls between the layouts.
"""

import math

import jax
from jax.sharding import PartitionSpec
from jaxtyping import Array

BATCH_AXES = ("data", "fsdp")  # each device of both has its own part of the batch


def batch_sharded(x: Array) -> Array:
    """Returns x [N, ...] or [B, ...] with its first axis divided over the devices of `BATCH_AXES`."""
    return x if jax.sharding.get_abstract_mesh().empty else jax.lax.with_sharding_constraint(x, _BATCH)


def replicated(x: Array) -> Array:
    """Returns x as a whole on each device; a table is gathered before rows of it are looked up."""
    return x if jax.sharding.get_abstract_mesh().empty else jax.lax.with_sharding_constraint(x, PartitionSpec())


def batch_parts() -> int:
    """Returns the number of parts that the batch is divided into."""
    shape = jax.sharding.get_abstract_mesh().shape
    return math.prod(shape.get(axis, 1) for axis in BATCH_AXES)


def tensor_sharded() -> bool:
    """True if the columns of matrices are divided over several devices."""
    return jax.sharding.get_abstract_mesh().shape.get("tensor", 1) > 1


_BATCH = PartitionSpec(BATCH_AXES)
