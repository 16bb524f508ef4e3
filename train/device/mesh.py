"""The device mesh of a group: its axes, and the layout of states and batches on it.

JAX partitions the programs (jit with NamedSharding, AxisType.Auto); the core is written as if for one device.
"""

import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from model.sharding import BATCH_AXES

from ..config.schema import MeshConfig
from ..errors import UserError

AXES = ("variants", *BATCH_AXES, "tensor")

# Axes of each kind of matrix [rows, columns], by the end of its path. Two products in a row divide their columns, then
# their rows over `tensor` (Shoeybi et al. 2019, 1909.08053, section 3); the width of the stream is divided over `fsdp`
# and gathered where it is used (Rajbhandari et al. 2020, 1910.02054, stage 3). All else is on every device.
LAYOUTS = {
    r"blocks/(attn/[qkv]|mlp/(in_|gate))/kernel": ("fsdp", "tensor"),
    r"blocks/(attn/o|mlp/out)/kernel": ("tensor", "fsdp"),
    r"embed|positions|head": (None, "fsdp"),
}


def mesh_of(axes: MeshConfig, rows: int, variants: int, devices: Sequence[Any]) -> Mesh:
    """Returns the mesh of a group of `variants` vmapped variants (1 if they take turns) over some of `devices`.

    `rows`: windows of a micro-batch; `data: -1` takes as many devices as divide them. On a TPU the mesh also has to
    divide the devices, or libtpu ends the process. Raises UserError when there are too few devices, or some number does
    not divide.
    """
    on_tpu = devices[0].platform == "tpu"
    if variants % axes.variants:
        here = f"the {variants} variants of one program" if variants > 1 else "1 variant a program"
        raise UserError(f"mesh.variants: expected a divisor of {here}, got {axes.variants}")
    others, data = axes.variants * axes.fsdp * axes.tensor, axes.data
    if data == -1:
        counts = [n for n in range(1, len(devices) // others + 1) if rows % (n * axes.fsdp) == 0]
        data = max((n for n in counts if not on_tpu or len(devices) % (others * n) == 0), default=1)
    sizes = {"variants": axes.variants, "data": data, "fsdp": axes.fsdp, "tensor": axes.tensor}
    if (count := others * data) > len(devices):
        shape = " x ".join(f"{axis} {size}" for axis, size in sizes.items() if size > 1)
        raise UserError(f"mesh: expected at most the {len(devices)} devices here, got {shape} = {count}")
    if on_tpu and len(devices) % count:
        raise UserError(f"mesh: expected a divisor of the {len(devices)} TPU devices here, got {count}")
    if len({device.process_index for device in devices[:count]}) < jax.process_count():
        raise UserError(
            f"mesh: expected the devices of all {jax.process_count()} processes, got {count} of {len(devices)}"
        )
    return jax.make_mesh(tuple(sizes.values()), AXES, (AxisType.Auto,) * len(AXES), devices=devices[:count])


def laid_out(mesh: Mesh, state: Any, vmapped: bool) -> Any:
    """Returns shapes and dtypes of a state with the sharding of each leaf, as `LAYOUTS` has it.

    An optimizer's averages end in the path of the parameter they are of, and lie as it does.
    """

    def leaf_layout(keys: tuple, leaf: Any) -> jax.ShapeDtypeStruct:
        path, lead = jax.tree_util.keystr(keys, simple=True, separator="/"), ("variants",) if vmapped else ()
        axes = next((axes for end, axes in LAYOUTS.items() if re.search(f"(^|/)({end})$", path)), ())
        layers = leaf.ndim - len(lead) - len(axes)  # blocks are stacked
        spec = P(*lead, *[None] * layers, *axes) if axes and layers in (0, 1) else P(*lead)
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, spec))

    return jax.tree_util.tree_map_with_path(leaf_layout, state)


def placed(tree: Any, shardings: Any) -> Any:
    """Returns host arrays, the same in every process, on the devices of `shardings`: one for all, or one a leaf.

    On devices that can only be compiled for (train/device/chips.py) it returns their shapes and dtypes.
    """
    device = jax.tree.leaves(shardings)[0].mesh.devices.flat[0]
    absent = getattr(device.client, "runtime_type", "") == "compile_only_runtime"
    if jax.process_count() == 1 and not absent:
        return jax.device_put(tree, shardings)

    def placed_leaf(leaf: Any, sharding: NamedSharding) -> Any:
        leaf = np.asarray(leaf)
        if absent:
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
        return jax.make_array_from_callback(leaf.shape, sharding, lambda index: leaf[index])

    if isinstance(shardings, NamedSharding):
        return jax.tree.map(lambda leaf: placed_leaf(leaf, shardings), tree)
    return jax.tree.map(placed_leaf, tree, shardings)


def fetched(tree: Any) -> Any:
    """Returns arrays of any layout as numpy arrays, whole, in every process."""
    if jax.process_count() == 1:
        return jax.device_get(tree)
    from jax.experimental import multihost_utils

    return multihost_utils.process_allgather(tree, tiled=True)
