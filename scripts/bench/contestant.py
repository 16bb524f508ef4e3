"""A contestant: the sizes it is built from, the facts a table states, its random corpus, and the machine it runs on.

Nothing of `train` is imported with this module, since a contestant may be another tree's.
"""

import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

READ_LOSS_EVERY = 10  # as nanoGPT's log_interval: each read waits for the device
LEARNING_RATE = 1e-3
BETAS = (0.9, 0.99)
WEIGHT_DECAY = 0.1
CLIP = 1.0
INIT_STD = 0.02
NORM_EPS = 1e-5
SHAKESPEARE_CHARS = 65
CPUINFO = Path("/proc/cpuinfo")


class Unavailable(Exception):
    """This machine cannot run the contestant; the message gives the reason."""


@dataclass(frozen=True)
class Shapes:
    """A decoder-only transformer with an MLP of 4 * width and a tied head, and the batch it is trained on."""

    layers: int
    heads: int
    width: int
    context: int
    batch: int
    vocab: int

    @property
    def tokens(self) -> int:
        """Tokens of one optimizer step."""
        return self.batch * self.context

    @property
    def matmul_params(self) -> int:
        """Parameters that multiply activations: 12 D^2 a block (q, k, v, out, MLP in and out), and the head."""
        return 12 * self.layers * self.width**2 + self.vocab * self.width

    @property
    def flops(self) -> int:
        """Model FLOPs of one step, forward and backward: 6 N + 12 L T D a token (PaLM, arXiv:2204.02311, app. B).

        The attention term counts the full T x T square, as there, even if a program skips the masked half.
        """
        attention = 12 * self.layers * self.context * self.width
        return (6 * self.matmul_params + attention) * self.tokens


@dataclass(frozen=True)
class Facts:
    """The properties of a contestant that a table states next to its times."""

    versions: str
    device: str
    dtype: str
    flops: float = 0.0  # of one step; 0 if they are not counted
    tokens: int = 0  # of one step; 0 if it is no training step
    dispatch: int = 1  # steps of one call


@dataclass(frozen=True)
class Contestant:
    """`run(n)` does n steps, n a multiple of `facts.dispatch`, waits for the device and returns seconds."""

    run: Callable[[int], float]
    facts: Facts


def facts(packages: str, dtype: str, shapes: Shapes | None = None, dispatch: int = 1) -> Facts:
    """Returns the facts of a program made with `packages` ("torch", or several and jax); dtype auto is resolved."""
    framework = "torch" if packages == "torch" else "jax"
    if dtype == "auto":
        dtype = "bfloat16" if fast_bfloat16(framework) else "float32"
    flops, tokens = (0.0, 0) if shapes is None else (shapes.flops, shapes.tokens)
    versions = ", ".join(f"{package} {version(package)}" for package in packages.split())
    return Facts(versions, device(framework), dtype, flops, tokens, dispatch)


def device(framework: str) -> str:
    if framework == "torch":
        import torch  # pyright: ignore[reportMissingImports]

        return torch.cuda.get_device_name() if torch.cuda.is_available() else cpu()
    import jax

    first = jax.devices()[0]
    return cpu() if first.platform == "cpu" else first.device_kind


def fast_bfloat16(framework: str) -> bool:
    """True on a TPU and on GPUs since Ampere, where training in bfloat16 pays."""
    if framework == "torch":  # `is_bf16_supported` is also true where it is emulated
        import torch  # pyright: ignore[reportMissingImports]

        return torch.cuda.is_available() and torch.cuda.get_device_capability()[0] >= 8
    from train.config.schema import TrainConfig
    from train.device.platform import compute_dtype, select

    return compute_dtype(TrainConfig(), select(TrainConfig())) == "bfloat16"


def cpu() -> str:
    """Returns the CPU's name and the number of cores that this process may use."""
    names = [line.split(":", 1)[1].strip() for line in _cpuinfo() if "model name" in line]
    return f"{[*names, platform.processor() or platform.machine()][0]}, {cores()} cores"


def cpu_has_bfloat16() -> bool:
    """True if the CPU multiplies bfloat16 in hardware; without, it is far slower than float32."""
    return any({"avx512_bf16", "amx_bf16"} & set(line.split()) for line in _cpuinfo() if line.startswith("flags"))


def _cpuinfo() -> list[str]:
    return CPUINFO.read_text().splitlines() if CPUINFO.exists() else []


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Corpus:
    """Random tokens of Zipf's distribution, so that there is something to learn."""

    def __init__(self, shapes: Shapes, seed: int = 0) -> None:
        self._rng = np.random.default_rng(seed)
        odds = 1.0 / np.arange(1, shapes.vocab + 1)
        self._tokens = self._rng.choice(shapes.vocab, size=1_000_000, p=odds / odds.sum()).astype(np.int32)
        self._window = np.arange(shapes.context + 1)
        self._batch = shapes.batch

    def batch(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns inputs and targets, int32 [B, T], in windows drawn at each step, as a trainer does."""
        starts = self._rng.integers(0, len(self._tokens) - len(self._window), size=self._batch)
        windows = self._tokens[starts[:, None] + self._window[None, :]]
        return windows[:, :-1], windows[:, 1:]


def one_step_a_call(step: Callable[[], Any], wait: Callable[[], object]) -> Callable[[int], float]:
    """Returns a contestant's `run`: `step` starts one optimizer step and returns its loss, `wait` awaits the device."""

    def run(n: int) -> float:
        start = time.perf_counter()
        for i in range(1, n + 1):
            loss = step()
            if i % READ_LOSS_EVERY == 0:
                float(loss)
        wait()
        return time.perf_counter() - start

    return run
