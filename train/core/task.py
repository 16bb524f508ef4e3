"""From a config and the form of its data to the network that is trained on it."""

from data.config import SERVES
from data.source import DataSpec
from model.network import Network

from ..config.schema import RunConfig
from ..errors import UserError


def network_of(config: RunConfig, form: DataSpec, dtype: str, unroll: int = 1) -> Network:
    """The network of a config that computes in `dtype`, `unroll` blocks a scan iteration. Raises UserError."""
    task = config.task.kind or form.task
    if task not in SERVES.get(form.task, ()):
        raise UserError(f"task.kind: data.kind {config.data.kind} is for {form.task}, got {task}")
    # The number of a class, as a real value, is one output.
    outputs = 1 if form.task != task else form.outputs
    return Network(
        config.model, form.vocab_size, form.context, dtype, unroll, task, outputs, form.channels, form.pooled
    )
