"""What a program has to offer to take part, and the loop that all one-step-a-call programs share."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from .shapes import Shapes

READ_LOSS_EVERY = 10  # as nanoGPT's log_interval: each read waits for the device
LEARNING_RATE = 1e-3
BETAS = (0.9, 0.99)
WEIGHT_DECAY = 0.1
CLIP = 1.0
INIT_STD = 0.02
NORM_EPS = 1e-5


class Unavailable(Exception):
    """This machine cannot run the contestant; the message says why."""


@dataclass(frozen=True)
class Facts:
    """What a table says of a contestant besides its times."""

    versions: str
    device: str
    dtype: str
    flops: float = 0.0  # of one step; 0 where nobody counts them
    tokens: int = 0  # of one step; 0 where the step is no training step
    window: int = 1  # steps of one call


@dataclass(frozen=True)
class Contestant:
    """`run(n)` does n steps, n a multiple of the window, waits for the device and returns seconds."""

    run: Callable[[int], float]
    facts: Facts


class Corpus:
    """Random tokens, the frequent ones far more frequent (Zipf), so that there is something to learn."""

    def __init__(self, shapes: Shapes, seed: int = 0) -> None:
        self._rng = np.random.default_rng(seed)
        odds = 1.0 / np.arange(1, shapes.vocab + 1)
        self._tokens = self._rng.choice(shapes.vocab, size=1_000_000, p=odds / odds.sum()).astype(np.int32)
        self._window = np.arange(shapes.context + 1)
        self._batch = shapes.batch

    def batch(self) -> tuple[np.ndarray, np.ndarray]:
        """Inputs and targets, int32 [B, T]: windows drawn anew at each step, as a trainer does."""
        starts = self._rng.integers(0, len(self._tokens) - len(self._window), size=self._batch)
        windows = self._tokens[starts[:, None] + self._window[None, :]]
        return windows[:, :-1], windows[:, 1:]


def one_step_a_call(step: Callable[[], Any], wait: Callable[[], object]) -> Callable[[int], float]:
    """`step` starts one optimizer step and returns its loss; `wait` returns when the device is idle."""

    def run(n: int) -> float:
        start = time.perf_counter()
        for i in range(1, n + 1):
            loss = step()
            if i % READ_LOSS_EVERY == 0:
                float(loss)
        wait()
        return time.perf_counter() - start

    return run
