"""What training asks of data, whatever it is: batches as pure functions of (seed, step), and the best possible loss."""

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from .batches import spread
from .tokenizer import Tokenizer


class Batch(NamedTuple):
    """What a network is shown and what it has to say; leading axes such as [steps] in front of B are allowed."""

    inputs: Any  # tokens [B, T], or real values [B, T, C]
    targets: Any  # [B, T] one a token, or [B] one a window when the form is pooled; classes, or real values
    weights: Any = None  # of the targets, in their shape: 0 = masked; None = all 1


class DataSpec(NamedTuple):
    """The shape of what goes into a network and comes out of it."""

    task: str  # lm, classification or regression
    context: int  # T, tokens of a window
    vocab_size: int | None  # of the inputs; None when they are real values
    outputs: int  # classes, or real values a target
    channels: int | None = None  # C, real values a token
    pooled: bool = False  # one target a window, told from the mean over its tokens

    @property
    def next_tokens(self) -> bool:
        """Whether the target of every token is the next one, so that windows of T+1 ids are all there is to say."""
        return self.task == "lm" and self.outputs == self.vocab_size and not self.pooled


class Whole:
    """A source without text, whose batches arrive whole: none of its data lives on the device."""

    tokenizer = None
    resident = None


class Source(Protocol):
    """Data a network can be trained on. Everything is a pure function, so that a resume needs nothing but the step."""

    @property
    def form(self) -> DataSpec: ...

    @property
    def source(self) -> str:
        """Its name, and what else tells it from others."""
        ...

    @property
    def details(self) -> str:
        """The rest of the line for people: sizes, known losses."""
        ...

    @property
    def sha256(self) -> str:
        """Of what decides on every batch."""
        ...

    @property
    def tokenizer(self) -> Tokenizer | None:
        """What `deltaflow sample` reads and writes text with; None where there is no text."""
        ...

    @property
    def floors(self) -> Mapping[str, float]:
        """Losses that are known in advance: "" is the best possible one, others go by name. Nats, or squared error."""
        ...

    @property
    def resident(self) -> tuple[NDArray[np.integer], NDArray[np.integer]] | None:
        """Tokens (train [n], held out [m]) that live on the device; batches are then starts of windows in them."""
        ...

    def train_batches(self, batch: int, seed: int, first_step: int, steps: int) -> Any:
        """The batches of some steps: a Batch of leaves [steps, B, ...], windows [steps, B, T+1] or starts [steps, B].

        The same for a step wherever a run was resumed, and however many steps are asked for at a time.
        """
        ...

    def heldout_batches(self, batch: int, batches: int | None) -> tuple[Any, NDArray[np.float32]]:
        """At most `batches` held-out batches (None: all), as above with S for steps, and their rows' weights [S, B]."""
        ...


def tiled(rows: Batch, batch: int, batches: int | None) -> tuple[Batch, NDArray[np.floating]]:
    """Rows [N, ...] as held-out batches [S, B, ...] and weights [S, B], the last filled up with rows of weight 0.

    With `batches`, that many batches of rows spread evenly over all of them.

    >>> tiled(Batch(np.arange(3), np.arange(3)), 2, None)[0].inputs.tolist()
    [[0, 1], [2, 0]]
    """
    index, weights = spread(len(rows.inputs), batch, batches)
    return Batch(*(None if leaf is None else leaf[index] for leaf in rows)), weights
