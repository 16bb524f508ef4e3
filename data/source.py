"""The interface of all data, and the opening of what a config names."""

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from . import DataError
from .batches import spread
from .config import DataConfig, declaration_of, problems
from .tokenizer import Tokenizer


class Batch(NamedTuple):
    """Inputs of a network and its targets. Axes such as [steps] may stand in front of B."""

    inputs: Any  # tokens [B, T] int32, or real values [B, T, C] float32
    targets: Any  # [B, T] one a token, or [B] one a window when the spec is pooled; classes int32, or values float32
    weights: Any = None  # float32 in the shape of the targets: 0 = masked; None = all 1


class DataSpec(NamedTuple):
    """Shapes of the inputs and outputs of a network."""

    task: str  # lm, classification or regression
    context: int  # T, tokens of a window
    vocab_size: int | None  # of the inputs; None when they are real values
    outputs: int  # classes, or real values a target
    channels: int | None = None  # C, real values a token
    pooled: bool = False  # one target a window, predicted from the mean over its tokens

    @property
    def next_tokens(self) -> bool:
        """True if the target of every token is the next one, so that windows of T+1 ids say everything."""
        return self.task == "lm" and self.outputs == self.vocab_size and not self.pooled


class BatchSource:
    """Base class of data sets without text, whose batches arrive whole: no data on the device."""

    tokenizer = None
    resident = None


class Source(Protocol):
    """Data for training. Everything is a pure function, so that a resumed run needs nothing but the step."""

    @property
    def spec(self) -> DataSpec: ...

    @property
    def name(self) -> str:
        """Its name, and what else distinguishes it."""
        ...

    @property
    def details(self) -> str:
        """The rest of its line in the start block: sizes, losses that are known in advance."""
        ...

    @property
    def sha256(self) -> str:
        """Hash of everything that the batches depend on."""
        ...

    @property
    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer for `deltaflow sample`; None where there is no text."""
        ...

    @property
    def resident(self) -> tuple[NDArray[np.integer], NDArray[np.integer]] | None:
        """Tokens (train [n], held out [m]) on the device, if any; batches are then starts of windows in them."""
        ...

    def train_batches(self, batch: int, seed: int, first_step: int, steps: int) -> Any:
        """Batches of `steps` steps: a Batch of leaves [steps, B, ...], windows [steps, B, T+1] or starts [steps, B].

        A step's batch depends neither on where a run was resumed, nor on how many steps one call asks for.
        """
        ...

    def heldout_batches(self, batch: int, batches: int | None) -> tuple[Any, NDArray[np.float32]]:
        """At most `batches` held-out batches (None: all), as above with S for steps, and their rows' weights [S, B]."""
        ...

    def floors(self, batch: int, batches: int | None) -> Mapping[str, float]:
        """Losses on these batches that are known in advance, by name, in nats or squared error.

        "" is that of the ideal predictor, which knows how the data is made. Others are of constant predictions; those
        of a text are of its whole held-out part.
        """
        ...


def tiled(rows: Batch, batch: int, batches: int | None) -> tuple[Batch, NDArray[np.floating]]:
    """Rows [N, ...] as held-out batches [S, B, ...] and weights [S, B], the last filled up with rows of weight 0.

    With `batches`, that many batches of rows spread evenly over all of them.

    >>> tiled(Batch(np.arange(3), np.arange(3)), 2, None)[0].inputs.tolist()
    [[0, 1], [2, 0]]
    """
    index, weights = spread(len(rows.inputs), batch, batches)
    return Batch(*(None if leaf is None else leaf[index] for leaf in rows)), weights


def counted(batches: Batch, weights: NDArray[np.floating]) -> Batch:
    """The rows [N, ...] of held-out batches [S, B, ...] that are no padding."""
    return Batch(*(None if leaf is None else leaf[weights > 0] for leaf in batches))


def open_source(config: DataConfig) -> Source:
    """The data that the config names. Raises DataError for whatever can go wrong."""
    for key, message in problems(config):
        raise DataError(f"data.{key}: {message}")
    return declaration_of(config).opener()(config)
