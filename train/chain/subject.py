"""The model for claims about the transformer: that of the config, reduced in size."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from data.config import DataConfig
from data.source import Batch, DataSpec, open_source
from model.config import ModelConfig, problems
from model.network import Anatomy, Network, Params
from model.residual import Carry

from ..config.schema import RunConfig
from ..core.loss import losses, tapped_loss
from ..core.state import hparams_of, network_of, parameter_count
from ..device.programs import called_once
from ..gradflow.delta import Backward, backward

LAYERS, HEAD_WIDTH, CONTEXT, WINDOWS, VOCABULARY = 16, 8, 8, 2, 16  # upper limits
NOISE = 0.05  # added to the initial parameters, so that no gain is 1 and no bias, and no alpha, 0
BUILT_IN = RunConfig(
    name="built-in",
    model=ModelConfig(layers=3, width=16, heads=2, bias=True, init_std=0.2),
    data=DataConfig(context=CONTEXT),
)


@dataclass(frozen=True)
class Subject:
    """A network in float64, its traced numbers, one batch and a point in parameter space."""

    name: str
    network: Network
    numbers: dict[str, Any]
    batch: Batch
    shrunk: tuple[str, ...] = ()  # what is smaller than in the config
    spread: float | None = None  # parameters are normal with this deviation; None: initial ones, moved a little

    @cached_property
    def params(self) -> Params:
        """The initial parameters of seed 0 plus NOISE, or normal draws where `spread` is given."""
        rng = np.random.default_rng(0)
        if self.spread is not None:
            draw, start = self.spread, jax.tree.map(lambda leaf: np.zeros(leaf.shape), self.network.shapes())
        else:
            draw, start = NOISE, jax.device_get(called_once(self.network.init, np.uint32(0), self.numbers))
        return jax.tree.map(lambda leaf: jnp.asarray(leaf + draw * rng.normal(size=leaf.shape)), start)

    @property
    def note(self) -> str:
        """A description in one line."""
        smaller = f"; smaller than in the config: {', '.join(self.shrunk)}" if self.shrunk else ""
        model = self.network.config
        what = f"{model.layers} blocks ({model.residual.rule}), width {model.width}"
        drawn = f"{self.batch.inputs.shape[0]} x {self.batch.inputs.shape[1]} drawn tokens"
        return f"{self.name}: {what}, {parameter_count(self.network.shapes()):,} parameters, {drawn}{smaller}"

    def loss(self, params: Params) -> Float[Array, ""]:
        """The mean loss that training uses, without taps."""
        loss: Any = tapped_loss(self.network, self.batch, self.numbers, None)
        return loss(params, None, None)[0]

    @cached_property
    def tapped(self) -> Backward:
        """The backward pass of `deltaflow probe`: gradients, and |delta| at every depth."""
        loss = tapped_loss(self.network, self.batch, self.numbers, None)
        return called_once(lambda params: backward(loss, params, self.network.config.layers)[1], self.params)

    def anatomy(self) -> Anatomy:
        return self.network.anatomy(self.params, self.batch.inputs, numbers=self.numbers)

    def loss_with_offset(self, depth: Int[Array, ""], offset: Carry) -> Float[Array, ""]:
        """Returns the loss with `offset` added to the carry entering block `depth`, or leaving the last one at depth L.

        The blocks are composed here, without the network's own scan and its taps.
        """
        anatomy, layers = self.anatomy(), self.network.config.layers

        def moved(carry: Carry, here: Array) -> Carry:
            return jax.tree.map(lambda c, o: c + here.astype(c.dtype) * o, carry, offset)

        def step(carry: Carry, inputs: Any) -> tuple[Carry, None]:
            params, layer = inputs
            return anatomy.block(params, layer, moved(carry, layer == depth)), None

        carry, _ = jax.lax.scan(step, anatomy.carry, (anatomy.blocks, jnp.arange(layers)))
        logits = anatomy.logits(moved(carry, depth == layers))
        return jnp.mean(losses(self.network, logits, self.batch, self.numbers))


def subject_of(config: RunConfig, name: str) -> Subject:
    """Returns the model of a config with sizes cut to the limits above, and its structure: rule, norms, heads, options.

    Tokens are drawn: of the data only sizes and task matter, and no corpus is read. Raises DataError, UserError.
    """
    if config.data.kind in ("text", "tokens"):
        spec = DataSpec("lm", config.data.context, VOCABULARY, VOCABULARY)
    else:
        spec = open_source(config.data).spec
    shrunk, model = [], config.model

    def at_most(limit: int, value: int, what: str) -> int:
        if value > limit:
            shrunk.append(f"{what} {value:,} → {limit:,}")
        return min(limit, value)

    model = model.model_copy(update={"layers": at_most(LAYERS, model.layers, "layers")})
    narrow = model.model_copy(update={"width": HEAD_WIDTH * model.heads})
    if not problems(narrow):  # such as an MLP of no width
        model = model.model_copy(update={"width": at_most(narrow.width, model.width, "width")})
    context = at_most(CONTEXT, spec.context, "context")
    classes = {"vocab_size": spec.vocab_size, "outputs": spec.outputs}
    if spec.vocab_size is not None:
        classes["vocab_size"] = at_most(VOCABULARY, spec.vocab_size, "vocabulary")
    if spec.task != "regression":
        same = spec.outputs == spec.vocab_size
        classes["outputs"] = classes["vocab_size"] if same else at_most(VOCABULARY, spec.outputs, "classes")
    spec = spec._replace(context=context, **classes)
    config = config.model_copy(update={"model": model})
    network = network_of(config, spec, "float64")
    return Subject(name, network, hparams_of(config, "float64").model, _batch(network, spec), tuple(shrunk))


def _batch(network: Network, spec: DataSpec) -> Batch:
    """Draws a batch in which every token occurs, so that every row of a table has a gradient."""
    rng, shape = np.random.default_rng(0), (WINDOWS, spec.context)
    if spec.vocab_size is None:
        inputs = rng.normal(size=(*shape, spec.channels or 1))
    else:
        inputs = rng.permutation(np.arange(WINDOWS * spec.context) % spec.vocab_size).reshape(shape).astype(np.int32)
    supervised = shape[:1] if spec.pooled else shape
    if network.task == "regression":
        targets = rng.normal(size=(*supervised, network.outputs or 1))
    else:
        targets = rng.integers(0, spec.outputs, supervised).astype(np.int32)
    return Batch(jnp.asarray(inputs), jnp.asarray(targets))
