"""The declaration of an instrument: its key, tags and charts, and when it can measure. No JAX."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from model.rules import object_at

if TYPE_CHECKING:
    from ..schema import RunConfig, WatchConfig


@dataclass(frozen=True)
class Tags:
    """Tags that an instrument logs, without their parts (`/layer_000`), and what their values mean."""

    names: tuple[str, ...]
    meaning: str
    source: str = ""


@dataclass(frozen=True)
class Instrument:
    """One instrument."""

    code: str  # module:function of a Snapshot (train/instruments/snapshot.py); a leading dot is train/instruments
    meaning: str  # in the config's documentation
    tags: tuple[Tags, ...]
    charts: tuple[tuple[str, str], ...] = ()  # (title, pattern of the tags on it)
    names: Mapping[str, str] = field(default_factory=dict)  # of tags in a sentence, with {} for the layer
    lines: Mapping[str, str] = field(default_factory=dict)  # curves that become pictures: tag, and what each is along
    histograms: bool = False
    matrices: bool = False  # that become pictures
    batches: Callable[["WatchConfig"], int] = lambda watch: 1  # that it measures on
    optimizer: bool = False  # it needs the optimizer's state
    precise: bool = False  # products in full float32, also where training multiplies in less
    long: bool = False  # many passes through the network: its program is worth the compiler's time
    unmet: Callable[["RunConfig"], str | None] = lambda config: None  # what a config lacks for it
    optional: bool = False  # where that is no error: a variant without it has no such tags

    def applies(self, config: "RunConfig") -> bool:
        """Under this config there is something to measure."""
        return self.unmet(config) is None

    @property
    def pictured(self) -> bool:
        """It leaves histograms or pictures, which a resumed run has to draw again."""
        return self.histograms or self.matrices or bool(self.lines)

    def function(self) -> Any:
        """The measuring function; imports JAX. Raises DeclarationError."""
        return object_at(self.code, str(__package__).replace(".config.", "."))
