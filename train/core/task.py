"""The network that a config trains on its data."""

from data.config import SERVES
from data.source import DataSpec
from model.network import Network

from ..config.schema import RunConfig
from ..errors import UserError


def network_of(config: RunConfig, form: DataSpec, dtype: str, unroll: int = 1) -> Network:
    """Returns the network of a config that computes in `dtype`, with `unroll` blocks a scan iteration.

    Raises UserError when `task.kind` does not fit the data.
    """
    task = config.task.kind or form.task
    if task not in SERVES.get(form.task, ()):
        raise UserError(f"task.kind: data.kind {config.data.kind} is for {form.task}, got {task}")
    # Regression on class labels: the label, as a real number, is the only output.
    outputs = 1 if form.task != task else form.outputs
    return Network(
        config.model, form.vocab_size, form.context, dtype, unroll, task, outputs, form.channels, form.pooled
    )
