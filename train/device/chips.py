"""Accelerators by their public figures, topologies of them to compile for without having one, and bounds on a step."""

import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import jax

from data import first_line

from ..errors import UserError


@dataclass(frozen=True)
class Chip:
    """Peaks of one chip, dense and without sparsity, as its maker states them."""

    device_kind: str  # how JAX's name of it begins
    kind: str  # gpu or tpu
    flops: float  # a second, bfloat16
    memory: float  # bytes of HBM
    bandwidth: float  # bytes a second, HBM
    link: float  # bytes a second that it sends to other chips, over all its links
    source: str


CHIPS = {
    "v5e": Chip("TPU v5 lite", "tpu", 197e12, 16 * 2**30, 819e9, 200e9, "Cloud TPU documentation, TPU v5e"),
    "v6e": Chip("TPU v6 lite", "tpu", 918e12, 32 * 2**30, 1640e9, 400e9, "Cloud TPU documentation, TPU v6e"),
    "A100": Chip("NVIDIA A100", "gpu", 312e12, 80e9, 2039e9, 300e9, "NVIDIA A100 80GB datasheet, SXM"),
    "H100": Chip("NVIDIA H100", "gpu", 989e12, 80e9, 3350e9, 450e9, "NVIDIA H100 datasheet, SXM"),
    "H200": Chip("NVIDIA H200", "gpu", 989e12, 141e9, 4800e9, 450e9, "NVIDIA H200 datasheet, SXM"),
}


def chip_of(device: Any) -> Chip | None:
    """Returns the chip that a device is, None for others than those of `CHIPS`."""
    return next((chip for chip in CHIPS.values() if str(device.device_kind).startswith(chip.device_kind)), None)


def devices_to_compile_for(name: str) -> tuple[Chip, Sequence[Any], str]:
    """Returns the chip of `v5e:2x4` or `H100:8`, devices in its place, and the compiler for them in words.

    Those of a TPU are a topology of libtpu (the extra `tpu`), on which nothing can be placed; without libtpu, and for
    GPUs, they are virtual CPU devices. To be called before JAX has started. Raises UserError.
    """
    kind, _, shape = name.partition(":")
    if kind not in CHIPS or not re.fullmatch(r"[1-9]\d{0,3}(x[1-9]\d{0,3}){0,2}", shape):
        raise UserError(f"--devices: expected CHIP:SHAPE, as in v5e:2x4 or H100:8, of {', '.join(CHIPS)}; got {name!r}")
    chip, count = CHIPS[kind], math.prod(map(int, shape.split("x")))
    if count > 4096:
        raise UserError(f"--devices: expected at most 4096 chips, got {name} = {count}")
    jax.config.update("jax_platforms", "cpu")  # a TPU that is here may be in use
    if chip.kind == "tpu" and (libtpu := _libtpu()):
        from jax.experimental import topologies

        alone = {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost", "TPU_ACCELERATOR_TYPE": "v5litepod-1"}
        alone |= {"ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}  # another process may train on a TPU that is here
        for key, value in alone.items():
            os.environ.setdefault(key, value)
        bounds = {"chips_per_host_bounds": (1, 1, 1)} if count == 1 else {}
        try:
            topology = topologies.get_topology_desc(platform="tpu", topology_name=name, **bounds)
        except Exception as error:
            raise UserError(f"--devices: libtpu has no topology {name} ({first_line(error)})") from None
        return chip, topology.devices, f"libtpu {libtpu}"
    jax.config.update("jax_num_cpu_devices", count)
    why = "" if chip.kind == "gpu" else "; libtpu is missing (pip install 'jax[tpu]')"
    return chip, jax.devices("cpu"), f"XLA for CPUs, so memory and traffic of a step are rough{why}"


def _libtpu() -> str | None:
    """Version of libtpu, None where it is missing or its jaxlib crashes on a topology (0.7.2 does)."""
    try:
        return version("libtpu") if tuple(map(int, version("jaxlib").split(".")[:2])) >= (0, 12) else None
    except PackageNotFoundError:
        return None


_BYTES = {"pred": 1, "bf16": 2, "f16": 2, "f64": 8, "s64": 8, "u64": 8, "s8": 1, "u8": 1, "s16": 2, "u16": 2}
_KINDS = "all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute"
_COLLECTIVE = re.compile(rf"= (?P<result>.+?) (?P<kind>{_KINDS})(?P<start>-start)?\(")


def sent(text: str) -> float:
    """Returns the bytes that a chip sends in the collectives of a compiled program without loops, on rings.

    Over n chips (Thakur et al. 2005, section 4): an all-gather of m bytes sends m (n-1) / n, a reduce-scatter of them
    as many, an all-reduce both.

    >>> sent("%a = f32[8,4]{1,0} all-reduce(%x), replica_groups={{0,1,2,3}}, to_apply=%sum")
    192.0
    >>> sent("%a = (bf16[2]{0}, bf16[8]{0}) all-gather-start(%x), replica_groups=[2,4]<=[8]")
    12.0
    >>> sent("%a = f32[8]{0} reduce-scatter(%x), replica_groups=mesh['a'=2,'b'=4], device_ids=([8]) {'b'}, to_apply=%s")
    96.0
    """
    total = 0.0
    for line in text.splitlines():
        if (match := _COLLECTIVE.search(line)) is None:
            continue
        shapes = re.findall(r"\b([a-z]+\d*)\[([\d,]*)\]", match["result"])
        size = sum(_BYTES.get(dtype, 4) * math.prod(map(int, filter(None, dims.split(",")))) for dtype, dims in shapes)
        n = _group_size(line)
        if match["start"] and match["kind"] == "all-gather":  # operands and results
            size *= n / (n + 1)
        if match["kind"] == "collective-permute":
            total += size / (2 if match["start"] else 1)
        else:
            total += size * {"all-reduce": 2 / n, "reduce-scatter": 1}.get(match["kind"], 1 / n) * (n - 1)
    return total


def _group_size(line: str) -> int:
    """The chips of a collective's group; XLA has three ways to write `replica_groups`."""
    if mesh := re.search(r"replica_groups=mesh\[(.*?)\].*? \{(.*?)\}", line):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", mesh[1]))
        parts = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", mesh[2])  # of an axis, or of a part of one
        return math.prod(int(part or sizes[axis]) for axis, part in parts)
    if counted := re.search(r"replica_groups=\[\d+,(\d+)\]", line):
        return int(counted[1])
    listed = re.search(r"replica_groups=\{\{([\d,]+)\}", line)
    return len(listed[1].split(",")) if listed else jax.device_count()
