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

from ..config.schema import RunConfig
from ..core.loss import losses, tapped_loss
from ..core.state import hparams_of, network_of, parameter_count
from ..device.programs import called_once
from ..gradflow.delta import Backward, backward

LAYERS, HEAD_WIDTH, CONTEXT, WINDOWS, CLASSES = 16, 8, 8, 2, 16  # upper limits
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
    shrunk: tuple[str, ...] = ()  # sizes that are smaller than in the config
    spread: float | None = None  # parameters are normal with this deviation; None: initial ones, moved a little

    @cached_property
    def params(self) -> Params:
        """The initial parameters of seed 0 plus NOISE, or normal draws where `spread` is given."""
        rng, draw = np.random.default_rng(0), NOISE if self.spread is None else self.spread
        start = jax.tree.map(lambda leaf: np.zeros(leaf.shape), self.network.shapes())
        if self.spread is None:
            start = jax.device_get(called_once(self.network.init, np.uint32(0), self.numbers))
        return jax.tree.map(lambda leaf: jnp.asarray(leaf + draw * rng.normal(size=leaf.shape)), start)

    @property
    def note(self) -> str:
        """A description in one line."""
        model, shape = self.network.config, self.batch.inputs.shape
        smaller = f"; smaller than in the config: {', '.join(self.shrunk)}" if self.shrunk else ""
        surrogate = "" if model.rule.derivative else ", whose gradients are no derivatives of the loss"
        sizes = f"{model.layers} blocks ({model.residual.rule}{surrogate}), width {model.width}"
        parameters = f"{parameter_count(self.network.shapes()):,} parameters"
        return f"{self.name}: {sizes}, {parameters}, {shape[0]} x {shape[1]} drawn tokens{smaller}"

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

    def loss_with_change(self, depth: Int[Array, ""], change: Float[Array, "n"]) -> Float[Array, ""]:
        """Returns the loss with `change` added to the stream that enters block `depth`, or at depth L leaves the last.

        The blocks are composed here, without the network's own scan and its taps.
        """
        anatomy, layers = self.anatomy(), self.network.config.layers
        stream = jax.eval_shape(anatomy.stream, anatomy.carry)
        (offset,) = jax.linear_transpose(anatomy.stream, anatomy.carry)(change.reshape(stream.shape))

        def moved(carry: Any, here: Array) -> Any:
            return jax.tree.map(lambda c, o: c + here.astype(c.dtype) * o, carry, offset)

        def step(carry: Any, inputs: Any) -> tuple[Any, None]:
            params, layer = inputs
            return anatomy.block(params, layer, moved(carry, layer == depth)), None

        carry, _ = jax.lax.scan(step, anatomy.carry, (anatomy.blocks, jnp.arange(layers)))
        logits = anatomy.logits(moved(carry, depth == layers))
        return jnp.mean(losses(self.network, logits, self.batch, self.numbers))


def subject_of(config: RunConfig, name: str) -> Subject:
    """Returns the model of a config with sizes cut to the limits above, and its structure: rule, norms, heads, options.

    Tokens are drawn: of the data only sizes and task matter, and no corpus is read. Raises DataError, UserError.
    """
    corpus, whole = config.data.kind in ("text", "tokens"), config.model
    full = DataSpec("lm", config.data.context, CLASSES, CLASSES) if corpus else open_source(config.data).spec
    limits = {"layers": min(LAYERS, whole.layers), "width": min(HEAD_WIDTH * whole.heads, whole.width)}
    model = whole.model_copy(update=limits)
    if problems(model):  # such as an MLP of no width
        model = model.model_copy(update={"width": whole.width})
    spec = full._replace(context=min(CONTEXT, full.context))
    if full.vocab_size is not None:
        spec = spec._replace(vocab_size=min(CLASSES, full.vocab_size))
    if full.task != "regression":
        spec = spec._replace(outputs=min(CLASSES, full.outputs))
    sizes = [("layers", whole.layers, model.layers), ("width", whole.width, model.width)]
    sizes += [("context", full.context, spec.context), ("vocabulary", full.vocab_size, spec.vocab_size)]
    sizes += [("classes", full.outputs, spec.outputs)] * (full.outputs != full.vocab_size)
    shrunk = tuple(f"{name} {old:,} → {new:,}" for name, old, new in sizes if old != new)
    config = config.model_copy(update={"model": model})
    network = network_of(config, spec, "float64")
    # Every token occurs, so that every row of a table has a gradient.
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
    batch = Batch(jnp.asarray(inputs), jnp.asarray(targets))
    return Subject(name, network, hparams_of(config, "float64").model, batch, shrunk)
