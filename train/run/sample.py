"""Text generation from the newest checkpoint of a run."""

from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np

from data.source import DataSpec
from data.tokenizer import Tokenizer, from_json
from model.network import draw, next_token_logits

from ..config.load import Variant
from ..device import platform as platforms
from ..disk import read_json
from ..errors import UserError
from ..store.checkpoint import Checkpoints
from ..store.rundir import read_config
from .experiment import build_group
from .probe import restored


class Generator:
    """A trained network with its tokenizer. Raises UserError, DataError, ConfigError at construction."""

    def __init__(self, directory: Path):
        config = read_config(directory)
        if not (directory / "tokenizer.json").exists() and config.data.kind != "text":
            raise UserError(f"{directory}: data.kind is {config.data.kind}, which has no text; sampling needs text")
        if config.model.attention != "causal":
            raise UserError(f"{directory}: model.attention is {config.model.attention}; sampling needs causal")
        self.tokenizer = read_tokenizer(directory)
        platform = platforms.select(config.train)
        variant = Variant(directory.name, config)
        size, self.context = self.tokenizer.vocab_size, config.data.context
        group = build_group([variant], DataSpec("lm", self.context, size, size), platform)
        params = restored(group, variant, directory, Checkpoints(directory).only_newest(), platform)

        @jax.jit
        def logits(tokens, length):
            return next_token_logits(group.network, params, tokens, length)

        self._logits = logits

    def _next(self, ids: list[int]) -> jax.Array:
        recent = ids[-self.context :]
        padded = np.zeros((self.context,), np.int32)
        padded[: len(recent)] = recent
        return self._logits(padded, len(recent))

    def likeliest(self, prompt: str, count: int) -> list[tuple[str, float]]:
        """Returns the `count` most likely next tokens with their probabilities, most likely first."""
        ids = self.tokenizer.encode(prompt).tolist()
        probabilities = np.asarray(jax.nn.softmax(self._next(ids)), np.float64)
        order = np.argsort(-probabilities, kind="stable")[:count]
        return [(self.tokenizer.token_text(int(index)), float(probabilities[index])) for index in order]

    def text(self, prompt: str, count: int, temperature: float, top_k: int | None, seed: int) -> Iterator[str]:
        """Yields text in pieces, `count` tokens in all, each predicted from the last `context` tokens."""
        ids = self.tokenizer.encode(prompt).tolist()
        pick = jax.jit(draw, static_argnums=(2, 3))
        key = jax.random.key(seed)
        start, shown = len(ids), 0
        for index in range(count):
            ids.append(int(pick(jax.random.fold_in(key, index), self._next(ids), temperature, top_k)))
            text = self.tokenizer.decode(ids[start:])
            if index + 1 == count or not text.endswith("\N{REPLACEMENT CHARACTER}"):  # an incomplete UTF-8 character
                yield text[shown:]
                shown = len(text)


def read_tokenizer(directory: Path) -> Tokenizer:
    """Returns the tokenizer that a run was trained with. Raises UserError."""
    path = directory / "tokenizer.json"
    try:
        return from_json(read_json(path))
    except ValueError as error:
        raise UserError(f"{path}: cannot read: {error}") from None
