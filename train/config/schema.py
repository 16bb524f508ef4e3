"""Every key of a config file, with its type, bounds, default and meaning. The single owner of each.

No JAX here: a config is loaded and checked before JAX starts.
"""

from typing import Annotated, Any, Literal

from pydantic import Field

from data.config import DataConfig
from model.config import ModelConfig, Section
from model.traced import Traced


class OptimizerConfig(Section):
    """The update rule and its schedule; `lr` falls to `min_lr` along the schedule after a linear warm-up."""

    name: Literal["adamw", "sgd"] = Field(
        default="adamw", description="sgd is plain: no momentum; weight decay is decoupled"
    )
    lr: Annotated[float, Traced()] = Field(default=1e-3, ge=0, description="peak learning rate")
    min_lr: Annotated[float, Traced()] = Field(
        default=1e-4, ge=0, description="learning rate at the end of the schedule"
    )
    schedule: Literal["constant", "linear", "cosine"] = Field(default="cosine", description="shape after the warm-up")
    warmup: int = Field(default=100, ge=0, description="steps of linear warm-up")
    weight_decay: Annotated[float, Traced()] = Field(
        default=0.1, ge=0, description="decoupled, on matrices only (no norms, no biases)"
    )
    betas: Annotated[tuple[float, float], Traced()] = Field(
        default=(0.9, 0.99), strict=False, description="Adam's averaging constants"
    )
    eps: Annotated[float, Traced()] = Field(default=1e-8, gt=0, description="Adam's epsilon")
    clip: Annotated[float | None, Traced()] = Field(
        default=1.0, gt=0, description="largest global gradient norm; null = off"
    )
    accumulate: int = Field(default=1, ge=1, description="micro-batches an optimizer step; must divide data.batch")


class TaskConfig(Section):
    """What the outputs are for, and the training loss. Held-out losses are always the plain mean."""

    kind: Literal["lm", "classification", "regression"] | None = Field(
        default=None,
        description="lm: cross-entropy of each token; classification: cross-entropy of the mean over tokens; "
        "regression: mean squared error; null = what data.kind is for",
    )
    label_smoothing: Annotated[float, Traced(off=0.0)] = Field(
        default=0.0, ge=0, lt=1, description="share of the target that is spread evenly over all classes"
    )
    z_loss: Annotated[float, Traced(off=0.0)] = Field(
        default=0.0, ge=0, description="factor of ln(sum exp logits)^2, added to the training loss"
    )


class TrainConfig(Section):
    """How long, how often, on what, in which precision."""

    steps: int = Field(default=2000, ge=1, description="optimizer steps")
    eval_every: int = Field(
        default=250, ge=1, description="steps between evaluations; step 0 and the last are always evaluated"
    )
    eval_batches: int | None = Field(
        default=20, ge=1, description="batches an evaluation; null = the whole held-out split"
    )
    checkpoint_every: int = Field(
        default=500, ge=1, description="steps between checkpoints; the last step is always saved"
    )
    steps_per_call: Literal["auto"] | int = Field(
        default="auto",
        description="K, optimizer steps a dispatch; divides eval_every and checkpoint_every",
    )
    unroll: Literal["auto"] | int = Field(default="auto", description="blocks unrolled in the scan over layers")
    group: Literal["auto", "vmap", "turn"] = Field(
        default="auto", description="variants of one shape: vmapped in one call, or called in turn; auto = turn on CPU"
    )
    device: Literal["auto", "cpu", "gpu", "tpu"] = Field(default="auto", description="auto = JAX's default")
    dtype: Literal["auto", "float32", "bfloat16", "float64"] = Field(
        default="auto", description="of compute; auto = bfloat16 on TPU and on GPUs since Ampere; float64 on CPU only"
    )
    matmul_precision: Literal["default", "high", "highest"] = Field(
        default="default", description="JAX's matmul precision"
    )


class WatchConfig(Section):
    """What is measured while training, and how often."""

    every: int = Field(default=10, ge=0, description="steps between watched steps; 0 = never")
    counterfactual: bool = Field(
        default=True, description="also delta and gradients of the same weights with skip_scale 0"
    )


class MeshConfig(Section):
    """Devices along each axis. One device for now, so each axis is 1 (-1 = all that are left)."""

    data: Literal[-1, 1] = Field(default=-1, description="data parallel; one device for now")
    fsdp: Literal[1] = Field(default=1, description="parameter sharding; only 1 for now")
    tensor: Literal[1] = Field(default=1, description="tensor parallel; only 1 for now")


class RunConfig(Section):
    """One variant, fully resolved."""

    name: str = Field(min_length=1, max_length=100, description="runs go to runs_dir/name/variant")
    seed: int = Field(default=0, ge=0, lt=2**32, description="of init and dropout")
    runs_dir: str = Field(default="runs", min_length=1, description="where runs go, relative to the current folder")
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    task: TaskConfig = TaskConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    train: TrainConfig = TrainConfig()
    watch: WatchConfig = WatchConfig()
    mesh: MeshConfig = MeshConfig()


class ExperimentConfig(RunConfig):
    """What a YAML file holds: the base run, its named variants, a grid over keys, and the results it promises."""

    variants: dict[str, dict[str, Any]] = Field(default={}, description="name -> overrides by dotted key")
    sweep: dict[str, list[Any]] = Field(default={}, description="dotted key -> values; the grid of all of them")
    expect: dict[str, dict[str, Any]] = Field(
        default={}, description="variant -> tag -> [low, high], or verdict: state; checked after the run"
    )
