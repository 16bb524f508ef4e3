"""Cost of every residual rule: step time, memory, FLOPs and parameters, against pre_ln's.

python scripts/bench --rules --config configs/quickstart.yaml [key=value ...]
"""

import time
from collections.abc import Sequence
from statistics import median
from typing import Any

import jax
import numpy as np

from data.batches import window_starts
from model.rules import RULES
from train.core.state import parameter_count
from train.device.memory import need
from train.device.process import tune
from train.device.programs import model_flops

from .project import TOKENS, programs_of

# All rules of one program, and those of options that change the cost, such as `mhc lite`.
OPTIONS: tuple[dict[str, Any], ...] = (
    *({"rule": rule} for rule, declared in RULES.items() if declared.program is None),
    {"rule": "hyper_connections", "dynamic": True},
    *({"rule": "mhc", "mixing": mixing} for mixing in ("identity", "circulant", "lite")),
    {"rule": "attnres", "block": 2},
    {"rule": "denseformer", "dynamic": True},
)
NAMED = {" ".join(str(value).lower() for value in each.values()): each for each in OPTIONS}
REFERENCE = "pre_ln"


class Trainer:
    """A program of one residual rule and its state, without watching or logging."""

    def __init__(self, config: str, residual: dict[str, Any], overrides: tuple[str, ...], vocab: int) -> None:
        chosen = f"model.residual={{{', '.join(f'{key}: {str(value).lower()}' for key, value in residual.items())}}}"
        self.programs, variant, self.K = programs_of(config, *overrides, chosen, watch_every=0, vocab=vocab)
        self.data, self.step = variant.config.data, 0
        windows = jax.ShapeDtypeStruct((self.K, self.data.batch), np.int32)
        self.programs.prepare_dispatch(windows, False)
        self.states = self.programs.init()
        self.run()  # the first dispatch allocates

    def run(self) -> float:
        """Returns the seconds a step of one dispatch."""
        batches = window_starts(TOKENS, self.data.context, self.data.batch, 0, self.step, self.K)
        self.step += self.K
        began = time.perf_counter()
        self.states, measured = self.programs.dispatch(self.states, [batches], False)
        jax.block_until_ready(measured)
        return (time.perf_counter() - began) / self.K

    def facts(self) -> tuple[float, float, float]:
        """Returns bytes beyond the state while a dispatch runs, FLOPs a step and parameters."""
        network = self.programs.group.network
        memory = need(self.programs, ()).training
        return float(memory), model_flops(network, self.data.batch), float(parameter_count(network.shapes()))


def costs(
    config: str, rounds: int, names: Sequence[str], overrides: tuple[str, ...], vocab: int
) -> tuple[list[str], list[list[str]]]:
    """Returns columns and rows: ratios to pre_ln, of times the median of those within a round, with all in turn.

    names: of `NAMED`, of those that run next to pre_ln. Raises UserError.
    """
    tune()  # as the command does
    chosen = [name for name in NAMED if name in (REFERENCE, *names)]
    trainers = {name: Trainer(config, NAMED[name], overrides, vocab) for name in chosen}
    times: dict[str, list[float]] = {name: [] for name in trainers}
    for _ in range(rounds):
        for name, trainer in trainers.items():
            times[name].append(trainer.run())
    usual, base = np.array(times[REFERENCE]), trainers[REFERENCE].facts()
    rows = []
    for name, trainer in trainers.items():
        ratios = [f"{mine / theirs:.3g}" for mine, theirs in zip(trainer.facts(), base, strict=True)]
        rows.append(
            [name, f"{1e3 * median(times[name]):.1f}", f"{np.median(np.array(times[name]) / usual):.2f}", *ratios]
        )
    return ["rule", "ms a step", "time", "memory", "FLOPs", "parameters"], rows
