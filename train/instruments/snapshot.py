"""The subject of an instrument: a training state and the batches that training takes next.

Every instrument is a pure function of a `Snapshot`, compiled as a program of its own that runs between two dispatches:
a step with no instrument due is not slowed, and training is the same with or without them. Dropout is off.
"""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from data.source import Batch
from model.network import Anatomy, Network, Params, leaves_by_path, path_of
from model.residual import Carry

from ..config.instruments import INSTRUMENTS
from ..config.schema import RunConfig
from ..core.batch import BatchInput, batch_of
from ..core.loss import losses, mean_loss, tapped_loss
from ..core.optimizer import HParams
from ..core.state import State
from ..core.step import train_step
from ..gradflow.delta import Backward, backward
from .readings import Reading


@dataclass(frozen=True)
class Snapshot:
    """The weights after some steps, and the batches that training takes next."""

    network: Network
    config: RunConfig
    state: State
    hp: HParams
    batches: Batch  # leaves [J, B, ...]

    @property
    def params(self) -> Params:
        return self.state.params

    def batch(self, index: int = 0) -> Batch:
        return jax.tree.map(lambda leaf: leaf[index], self.batches)

    def backward(self, params: Params, numbers: Mapping[str, Any] | None = None, index: int = 0) -> Backward:
        """Gradients and delta of a batch; `numbers`: other traced numbers than the run's."""
        numbers = self.hp.model if numbers is None else numbers
        loss = tapped_loss(self.network, self.batch(index), numbers, None)
        return backward(loss, params, self.config.model.layers)[1]

    def loss_of(self, params: Params, batch: Batch, total: Array | None = None) -> Float[Array, ""]:
        """The training loss of a batch, differentiable any number of times; `total`: see `tapped_loss`."""
        loss = tapped_loss(self.network, batch, self.hp.model, None, total)
        return loss(params, None, None)[0]  # pyright: ignore[reportArgumentType]

    def loss(self, params: Params) -> Float[Array, ""]:
        """The training loss of the first batch."""
        return self.loss_of(params, self.batch())

    def mean_loss(self, params: Params) -> Float[Array, ""]:
        """The training loss of all batches together."""

        def add(total: Array, batch: Batch) -> tuple[Array, None]:
            return total + self.loss_of(params, batch), None

        first = jax.eval_shape(lambda: self.loss(params))
        total, _ = jax.lax.scan(jax.checkpoint(add), jnp.zeros((), first.dtype), self.batches)
        return total / jax.tree.leaves(self.batches)[0].shape[0]

    @property
    def biased(self) -> "Snapshot":
        """With a bias of zero in every linear map, whose gradient is delta at the map's output, summed over tokens."""
        config = self.network.config.model_copy(update={"bias": True})
        network, own = dataclasses.replace(self.network, config=config), leaves_by_path(self.params)

        def filled(path: tuple, leaf: jax.ShapeDtypeStruct) -> Array:
            return own[path_of(path)] if path_of(path) in own else jnp.zeros(leaf.shape, leaf.dtype)

        params = jax.tree_util.tree_map_with_path(filled, network.shapes())
        return dataclasses.replace(self, network=network, state=self.state._replace(params=params))

    def updated(self) -> Params:
        """The weights after the step that training takes next."""
        state, _, _ = train_step(self.network, self.config, self.state, self.hp, self.batch(), False)
        return state.params

    def loss_at(self, anatomy: Anatomy) -> Callable[[Carry], Float[Array, ""]]:
        """The training loss of the first batch as a function of the last block's output."""
        batch = self.batch()

        def score(logits: Array, targets: Array) -> Array:
            return losses(self.network, logits, batch._replace(targets=targets), self.hp.model)

        return lambda carry: mean_loss(anatomy.logits(carry, score, batch.targets), batch)

    def anatomy(self, examples: int | None = None) -> Anatomy:
        """The parts of the network on the first batch, or on its first examples."""
        return self.network.anatomy(self.params, self.batch().inputs[:examples], numbers=self.hp.model)

    @property
    def precise(self) -> "Snapshot":
        """With products and activations in at least float32: second derivatives in bfloat16 say little."""
        dtype = "float64" if self.network.dtype == "float64" else "float32"
        return dataclasses.replace(self, network=dataclasses.replace(self.network, dtype=dtype))


def read(
    name: str, network: Network, config: RunConfig, state: State, hp: HParams, corpus: Array | None, inputs: BatchInput
) -> dict[str, Reading]:
    """The readings of an instrument, by tag. Pure; run it under jit. `name`, `network` and `config` are static.

    inputs: leaves [J, B, ...], the next J batches. Gradients are those of training, in its dtype; a precise instrument
    computes in float32 at least.
    """
    # Unrolled it would be long to compile, and it runs rarely. Fused attention has no derivative in forward mode.
    rolled = dataclasses.replace(network, unroll=1, fused=None)
    batches = jax.vmap(lambda batch_input: batch_of(batch_input, corpus, network.context))(inputs)
    instrument, snapshot = INSTRUMENTS[name], Snapshot(rolled, config, state, hp, batches)
    if not instrument.precise:
        return instrument.function()(snapshot)
    with jax.default_matmul_precision("highest"):
        return instrument.function()(snapshot.precise)
