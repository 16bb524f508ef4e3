"""What cannot fit is refused before the first step, wherever the device or the machine tells what it has; what a device
refuses all the same is answered by the same advice."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp

from ..errors import UserError, out_of_memory
from ..text import size
from .advisor import Advisor
from .available_memory import available
from .memory import Need, bytes_of, need
from .platform import Platform
from .programs import Programs


@dataclass
class Budget:
    """The memory of one group's training. `resident`: its tokens (train, held out) on the device, or Nones."""

    programs: Programs
    resident: tuple[Any, Any]
    room: int | None  # bytes for all of it; None: nobody tells
    say: Callable[[str], None]
    need: Need | None = None  # once everything is compiled

    @staticmethod
    def of(programs: Programs, resident: tuple[Any, Any], platform: Platform, say: Callable[[str], None]) -> "Budget":
        """Raises UserError when not even the states have room, before anything is compiled for them."""
        free = available(platform)
        budget = Budget(programs, resident, None if free is None else free + bytes_of(resident), say)
        held = need(programs, resident)  # nothing is prepared yet
        if budget.room is not None and held.total > budget.room:
            raise UserError(complaint(held, budget.room, []) + _of_tables(programs, held))
        return budget

    def check(self) -> None:
        """Before the first step, when all is compiled. Raises UserError when it has no room, and says what would."""
        self.need = need(self.programs, self.resident)
        if self.room is not None and self.need.total > self.room:
            raise UserError(complaint(self.need, self.room, self._advice(self.need, self.room)))

    def explain(self, error: Exception) -> None:
        """Raises UserError in place of an error that says that memory ran out: what fits three quarters of what this
        takes, or of what there is when that is not known, since the compiler itself had no room."""
        if not out_of_memory(error):
            return
        with suppress(Exception):  # of a program that was never compiled
            self.need = need(self.programs, self.resident)
        taken = self.need or Need(0, self.room or 0)
        bounds = [bound for bound in (self.room, taken.total) if bound]
        advice = self._advice(taken, int(0.75 * min(bounds))) if bounds else []
        raise UserError(complaint(self.need, self.room, advice)) from None

    def _advice(self, taken: Need, room: int) -> list[str]:
        self.say("not enough memory; compiling other settings to see what fits")
        return Advisor(self.programs, self.resident, taken, room).advice()

    @property
    def line(self) -> str:
        """`estimated 41.3 MB of 8.14 GB`"""
        of = "" if self.room is None else f" of {size(self.room)}"
        return "unknown" if self.need is None else f"estimated {size(self.need.total)}{of}"


def _of_tables(programs: Programs, held: Need) -> str:
    """Ids of a file may be of any size, and a vocabulary is as large as the largest."""
    network = programs.group.network
    tables = (network.vocab_size or 0) * network.config.width * jnp.dtype(network.param_dtype).itemsize
    return f"; most of it is for a vocabulary of {network.vocab_size:,} tokens" if 2 * tables > held.total / 3 else ""


def complaint(taken: Need | None, there: int | None, advice: list[str]) -> str:
    """One line: what is needed and what there is, and what would fit."""
    parts = ["not enough memory"]
    if taken is not None:
        parts[0] += f": training needs about {size(taken.total)}"
        parts[0] += f" ({size(taken.held)} for parameters, optimizer and tokens, {size(taken.passing)} for a step)"
        if there is not None:
            parts[0] += f", and there are {size(there)}"
    others = "model.width, model.layers or the number of variants"
    parts.append(f"what fits: {', '.join(advice)}" if advice else f"lower {others}")
    return "; ".join(parts)
