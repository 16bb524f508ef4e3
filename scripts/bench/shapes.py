"""What all contestants are built from: the sizes of the model and of a batch, and the arithmetic they imply."""

import importlib
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any

# What the contestants besides the project are written for. A config that says otherwise is still timed, with a note.
# The norm is not listed: the project's RMS norm is part of what it offers, the others have GPT-2's layer norm.
WRITTEN_FOR = {
    "model.residual.rule": "pre_ln",
    "model.mlp_ratio": 4,
    "model.activation": "gelu",
    "model.positions": "learned",
    "model.attention": "causal",
    "model.bias": False,
    "model.tied_head": True,
    "model.dropout": 0.0,
    "optimizer.name": "adamw",
    "optimizer.clip": 1.0,
    "optimizer.accumulate": 1,
}
SHAKESPEARE_CHARS = 65


@dataclass(frozen=True)
class Shapes:
    """A decoder-only transformer with an MLP of 4 * width and a tied head, and the batch it is trained on."""

    layers: int
    heads: int
    width: int
    context: int
    batch: int
    vocab: int

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 1:
                raise ValueError(f"{name}: expected at least 1, got {value}")
        if self.width % self.heads:
            raise ValueError(f"heads: expected a divisor of width {self.width}, got {self.heads}")

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

        The attention term counts the full T x T square, as there, whether or not a program skips the masked half.
        """
        attention = 12 * self.layers * self.context * self.width
        return (6 * self.matmul_params + attention) * self.tokens


@dataclass(frozen=True)
class Setting:
    """What a config file says that concerns the contest."""

    shapes: Shapes
    dtype: str
    notes: tuple[str, ...]


def read(path: Path) -> Setting:
    """The first variant of a config file, read by the project's own loader.

    Raises:
        ValueError: the loader rejects the file, or its sizes are no model.
    """
    loader: Any = importlib.import_module("train.config.load")
    try:
        config = loader.load(path).variants[0].config
    except loader.ConfigError as error:
        raise ValueError(str(error)) from error
    shapes = Shapes(
        layers=config.model.layers,
        heads=config.model.heads,
        width=config.model.width,
        context=config.data.context,
        batch=config.data.batch,
        vocab=SHAKESPEARE_CHARS,
    )
    notes = []
    for key, expected in WRITTEN_FOR.items():
        got = attrgetter(key)(config)
        if got != expected:
            notes.append(f"{key} is {got!r} in {path.name}; the other programs have {expected!r}")
    return Setting(shapes, config.train.dtype, tuple(notes))
