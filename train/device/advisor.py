"""Which settings would fit where the config's do not."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax

from ..config.load import Variant
from ..errors import out_of_memory
from ..text import size
from .memory import Need, bytes_of, need
from .programs import Group, Programs

_HALVINGS = 6  # of the context that are tried
_HURRY = 1.02  # of what a program takes that was compiled in a hurry


@dataclass(frozen=True)
class Setting:
    """What a step's memory depends on most, besides the model; `parts`: micro-batches of a step."""

    batch: int
    parts: int
    context: int


@dataclass
class Advisor:
    """Compiles what `programs` holds anew for other settings, to find those that need at most `room` bytes.

    Every setting that is named was compiled, in a hurry: that changed the temporaries of a step by at most 2 % (444 MB
    for 436), while a loop over blocks in place of unrolled ones changed them by 77 %, so nothing else is made simpler.
    """

    programs: Programs
    resident: tuple[Any, Any]
    need: Need  # of these programs
    room: int

    def advice(self) -> list[str]:
        """`key=value (bytes)` of the settings next to the config's that fit; empty when none does."""
        now = self._setting
        parts = [now.parts * d for d in _factors(now.batch // now.parts)]
        batches = [now.batch // d for d in _factors(now.batch) if now.batch // d % now.parts == 0]
        contexts = [now.context >> shift for shift in range(1, _HALVINGS + 1) if now.context >> shift]
        if self.programs.group.config.data.kind not in ("text", "tokens"):
            contexts = []  # its windows may be of one length
        named = {"parts": "optimizer.accumulate", "batch": "data.batch", "context": "data.context"}
        found = []
        for axis, values in (("parts", parts), ("batch", batches), ("context", contexts)):
            base = getattr(now, axis)
            shares = [base / value if axis == "parts" else value / base for value in values]
            best = self._best(now, axis, values, shares) if values else None
            if best is not None:
                found.append(f"{named[axis]}={best[0]} ({size(best[1])})")
        return found

    @property
    def _setting(self) -> Setting:
        config = self.programs.group.config
        return Setting(config.data.batch, config.optimizer.accumulate, config.data.context)

    def _best(self, now: Setting, axis: str, values: list[int], shares: list[float]) -> tuple[int, int] | None:
        """The first of these values that fits, and its bytes; they go from much memory to little.

        Each share is what the value leaves of a step's memory if that is in proportion. So the first one that should
        fit is compiled first; then its neighbours, up while they fit, or down until one does.
        """
        held, passing = self.need.held, self.need.passing
        guess = next((n for n, share in enumerate(shares) if held + share * passing <= self.room), len(values) - 1)
        best = None
        at, step = guess, 0
        while 0 <= at < len(values):
            taken = self.total(dataclasses.replace(now, **{axis: values[at]}))
            fits = taken is not None and taken <= self.room
            if taken is not None and fits:
                best = (values[at], taken)
            step = step or (-1 if fits else 1)
            if fits != (step < 0):  # the first that does not, on the way up; the first that does, on the way down
                break
            at += step
        return best

    def total(self, setting: Setting) -> int | None:
        """Bytes that training takes under a setting; None when a program of it cannot even be compiled."""
        group = _changed(self.programs.group, setting)
        programs = Programs(group, self.resident[0], hurry=True)
        lead = int(group.vmapped)
        try:
            for key in _largest(self.programs.feeds):
                feed = self._resized(self.programs.feeds[key], setting, 1 if key == "evaluate" else 1 + lead)
                if key == "evaluate":
                    programs.prepare_evaluation(self.resident[1], *feed)
                elif key[0] == "instrument":
                    programs.prepare_instrument(key[1], *feed)
                else:
                    programs.prepare_window(*feed, watched=key[2])
            return int(_HURRY * need(programs, self.resident).total)
        except Exception as error:
            if out_of_memory(error):
                return None
            raise

    def _resized(self, feed: Any, setting: Setting, axis: int) -> Any:
        """Shapes of a feed whose leaves have B at `axis`, and, where windows arrive whole, T + 1 behind it."""
        now = self._setting

        def one(leaf: Any) -> Any:
            shape = list(leaf.shape)
            shape[axis] = setting.batch
            if shape[axis + 1 :] == [now.context + 1]:
                shape[axis + 1] = setting.context + 1
            return jax.ShapeDtypeStruct(tuple(shape), leaf.dtype)

        return jax.tree.map(one, feed)


def _changed(group: Group, setting: Setting) -> Group:
    def changed(variant: Variant) -> Variant:
        config = variant.config
        data = config.data.model_copy(update={"batch": setting.batch, "context": setting.context})
        optimizer = config.optimizer.model_copy(update={"accumulate": setting.parts})
        return dataclasses.replace(variant, config=config.model_copy(update={"data": data, "optimizer": optimizer}))

    network = dataclasses.replace(group.network, context=setting.context)
    return dataclasses.replace(group, variants=tuple(map(changed, group.variants)), network=network)


def _largest(feeds: Mapping[Any, Any]) -> list[Any]:
    """The keys of the programs that can be the largest: of the windows the longest, watched if any are."""
    windows = [key for key in feeds if key[0] == "window"]
    watched = [key for key in windows if key[2]] or windows
    longest = sorted(watched, key=lambda key: bytes_of(feeds[key]))[-1:]
    return [*longest, *(key for key in feeds if key == "evaluate" or key[0] == "instrument")]


def _factors(number: int) -> list[int]:
    """Divisors above 1, ascending.

    >>> _factors(12)
    [2, 3, 4, 6, 12]
    """
    return [n for n in range(2, number + 1) if number % n == 0]
