"""Declarations of the instruments: their keys under `watch.instruments`, tags, charts, and when each can measure.

The config's keys and checks, TensorBoard's Custom Scalars, and the table of docs/instruments.md derive from
`INSTRUMENTS`. No JAX here; each declaration names the function that measures. To add an instrument, set
`INSTRUMENTS[name]` before the config's schema is imported:

    INSTRUMENTS["weights"] = Instrument("my_instruments:weights", "largest weight", (Tags(("weight/max",), "..."),))
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from .blocks import BLOCKS
from .curvature import CURVATURE
from .declaration import Instrument, Tags
from .gradients import GRADIENTS

if TYPE_CHECKING:
    from ..schema import RunConfig

__all__ = ["INSTRUMENTS", "Instrument", "Tags", "lines", "problems"]

INSTRUMENTS: dict[str, Instrument] = BLOCKS | GRADIENTS | CURVATURE


def problems(config: "RunConfig") -> Iterator[tuple[str, str]]:
    """Problems of the instruments that are on, as (dotted key, message)."""
    for name in config.watch.intervals:
        instrument = INSTRUMENTS[name]
        if not instrument.optional and (message := instrument.unmet(config)) is not None:
            yield f"watch.instruments.{name}", message


def lines() -> dict[str, str]:
    """The direction of each curve's line in words, by tag."""
    return {tag: what for instrument in INSTRUMENTS.values() for tag, what in instrument.lines.items()}
