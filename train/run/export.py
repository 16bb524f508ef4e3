"""Export of a checkpoint's parameters for other programs: plain safetensors, and a JSON with what else a model is."""

from pathlib import Path
from typing import Any

import numpy as np

from data.files import replacing
from data.source import DataSpec, open_source
from model.network import leaves_by_path

from ..core.state import network_of
from ..disk import read_json, write_json
from ..errors import Failure, UserError, refusal
from ..store import tensors
from ..store.checkpoint import Checkpoints
from ..store.rundir import checkpoint_of, read_config


def export(directory: Path, step: int | str, to: Path) -> dict[str, Any]:
    """Writes the parameters at a step (or `newest`, `best`) to `to`, and a JSON next to it, whose content it returns.

    docs/checkpoints.md has the names of the arrays and the keys of the JSON. Raises UserError, ConfigError, DataError.
    """
    config, checkpoints = read_config(directory), Checkpoints(directory)
    if (to.parent / "config.yaml").exists() or checkpoint_of(to, "config.yaml"):
        raise UserError(f"{to}: expected a file outside of run directories, whose files have such names")
    step = chosen(checkpoints, step)
    header, arrays = checkpoints.header(step), named(checkpoints.params(step))
    if config.data.kind in ("text", "tokens"):  # whose files may be gone
        size = len(arrays["embed"])
        spec = DataSpec("lm", config.data.context, size, size)
    else:
        spec = open_source(config.data).spec
    network = network_of(config, spec, config.train.dtype)
    tokenizer = directory / "tokenizer.json"
    about = {
        "run": str(directory),
        "step": step,
        "loss/val": header.loss_val,
        "parameters": sum(array.size for array in arrays.values()),
        "task": network.task,
        "context": network.context,
        "vocab_size": network.vocab_size,
        "outputs": spec.outputs if network.outputs is None else network.outputs,
        "channels": network.channels,
        "pooled": network.pooled,
        "model": config.model.model_dump(mode="json"),
        "tokenizer": read_json(tokenizer) if tokenizer.exists() else None,
    }
    sidecar = to.with_suffix(".json")
    if sidecar.exists() and not (sidecar.is_file() and "parameters" in read_json(sidecar)):
        raise UserError(f"{sidecar}: exists, and no export wrote it; name another file with --to")
    try:
        with replacing(to) as file:
            tensors.write(file, arrays, {"step": str(step)}, sealed=False)
    except OSError as error:
        raise Failure(f"{to}: cannot write: {refusal(error, to.parent)}") from None
    write_json(sidecar, about)
    return about


def chosen(checkpoints: Checkpoints, step: int | str) -> int:
    """Returns the step of `newest`, of `best` (the least held-out loss), or a step that is saved. Raises UserError."""
    newest = checkpoints.only_newest()
    if step == "newest":
        return newest
    number = checkpoints.best() if step == "best" else step
    if number in checkpoints.steps():
        return number
    saved = ", ".join(map(str, checkpoints.steps()))
    lacks = "held-out loss in any checkpoint" if step == "best" else f"checkpoint of step {step}"
    raise UserError(f"{checkpoints.run_directory}: no {lacks}; there are steps {saved}")


def named(params: Any) -> dict[str, np.ndarray]:
    """Returns nested parameters by dotted name, `blocks.3.attn.q.kernel`: an array a block, no stacks of all blocks."""
    arrays: dict[str, np.ndarray] = {}
    for path, array in leaves_by_path(params).items():
        first, *rest = path.split("/")
        if first == "blocks":
            arrays |= {".".join((first, str(layer), *rest)): each for layer, each in enumerate(array)}
        else:
            arrays[".".join((first, *rest))] = array
    return arrays
