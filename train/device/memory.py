"""What training a group takes of the device's memory: a compiled program says what it needs while it runs; the states
of the variants and the tokens on the device are known from their shapes."""

import math
from dataclasses import dataclass
from typing import Any

import jax

from .programs import Programs


@dataclass(frozen=True)
class Need:
    """Bytes on the device."""

    held: int  # all the time: states, and tokens that live there
    passing: int  # while the largest program runs: its temporaries, its results, its batches

    @property
    def total(self) -> int:
        return self.held + self.passing


def bytes_of(tree: Any) -> int:
    """Of arrays, or of shapes and dtypes."""
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def need(programs: Programs, resident: Any) -> Need:
    """Of everything that was prepared; waits until it is compiled."""
    state = bytes_of(programs.abstract_state)
    held, passing = programs.calls * state + bytes_of(resident), 0
    for key, (program, feed) in programs.ready.items():
        made = state if key == "init" else 0  # its result is held, and counted there
        passing = max(passing, _passing(program, feed) - made)
    return Need(held, passing)


def _passing(program: Any, feed: Any) -> int:
    """Bytes that a call takes besides what it is given and lives on: temporaries, results in new memory, its feed."""
    told = program.memory_analysis()
    if told is None:
        return bytes_of(feed)
    made = max(0, told.output_size_in_bytes - told.alias_size_in_bytes)
    return int(told.temp_size_in_bytes + made) + bytes_of(feed)
