"""Every key of a config file, with its type, bounds, default and meaning. The single owner of each.

No JAX here: a config is loaded and checked before JAX starts.
"""

from collections.abc import Iterator
from os.path import expanduser
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, Field, create_model

from data.config import DataConfig
from model.config import ModelConfig, Section
from model.traced import Traced

from .instruments import INSTRUMENTS
from .optimizers import OPTIMIZERS, readers

# The states of a verdict (train/gradflow/verdict.py), which `expect:` may name, and all but the first `stop_when`.
STATES = ("healthy", "vanishing", "exploding", "dead_qk", "collapsed", "unstable", "not_learning")
# Keys that have no effect on what a run computes.
LABELS = ("name", "runs_dir")
# Keys and sections that may change when a run goes on: what was computed so far depends on none of them, except where a
# schedule is drawn over train.steps.
CHANGEABLE = (
    "train.steps",
    "train.eval_every",
    "train.eval_batches",
    "train.checkpoint_every",
    "train.steps_per_call",
    "train.on_nonfinite",
    "train.stop_when",
    "watch",
    "log",
    "mesh",
)

if TYPE_CHECKING:
    OptimizerName = str
else:
    OptimizerName = Literal[tuple(OPTIMIZERS)]


Beta = Annotated[float, Field(ge=0, lt=1)]
Folder = Annotated[str, Field(min_length=1), AfterValidator(expanduser)]
AutoOrCount = Literal["auto"] | Annotated[int, Field(ge=1)]


class Factors(dict[str, float]):
    """A mapping that a frozen config can hold: equal ones have equal hashes."""

    def __hash__(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        return hash(tuple(self.items()))


class OptimizerConfig(Section):
    """The update rule and its schedule; `lr` falls to `min_lr` along the schedule after a linear warm-up.

    Options that an optimizer does not read change nothing; each names those that read it. Patterns are the shell's, of
    parameters' paths such as blocks/attn/q/kernel, blocks/mlp/in/kernel, blocks/norm_1/gain, embed, norm_f/gain; a
    folder means all in it, and * also takes slashes.
    """

    name: OptimizerName | Annotated[str, Field(pattern=r"^\w+(\.\w+)*:\w+$", description="module:function")] = Field(
        default="adamw",
        description="sgd is plain; nesterov is momentum looked at ahead; muon is for attention's and the MLP's "
        "matrices and adam for all else; adafactor multiplies each update by the rms of what it updates; "
        "module:function is the user's own, see docs/optimizers.md",
    )
    lr: Annotated[float, Traced()] = Field(default=1e-3, ge=0, description="peak learning rate")
    min_lr: Annotated[float, Traced()] = Field(
        default=1e-4, ge=0, description="learning rate at the end of the schedule"
    )
    schedule: Literal["constant", "linear", "cosine", "wsd", "rsqrt", "step", "one_cycle"] = Field(
        default="cosine",
        description="shape after the warm-up: wsd is constant and falls linearly at the end; rsqrt falls as "
        "1 / sqrt(step); step falls in stairs; one_cycle rises from a tenth of the way, falls back to it, and then to "
        "min_lr. constant stays at lr whatever min_lr is",
    )
    decay_fraction: float = Field(
        default=0.1,
        gt=0,
        lt=1,
        description="last part of the schedule: of all steps for wsd, of those after the warm-up for one_cycle",
    )
    step_every: int = Field(default=1000, ge=1, description="steps from stair to stair of schedule: step")
    step_factor: float = Field(default=0.1, gt=0, lt=1, description="height of a stair over that of the one before")
    warmup: int = Field(default=100, ge=0, description="steps of linear warm-up")
    weight_decay: Annotated[float, Traced()] = Field(
        default=0.1, ge=0, description="on matrices and tables only (no gains, no biases); 0 = none"
    )
    decay: Literal["auto", "decoupled", "l2"] = Field(
        default="auto",
        description="decoupled: the weights shrink by lr * weight_decay apart from the update; l2: weight_decay * "
        "weights is added to the clipped gradient, as the loss's + weight_decay / 2 * |weights|^2 would; auto = l2 for "
        "adam, decoupled for all others",
    )
    momentum: Annotated[float, Traced()] = Field(
        default=0.9, ge=0, lt=1, description=f"share of the last update's direction: {readers('momentum')}"
    )
    betas: Annotated[tuple[Beta, Beta], Traced()] = Field(
        default=(0.9, 0.99),
        strict=False,
        description="averaging constants of the gradient and its square: adam, adamw, muon's adam; lion's two; the "
        "second one is rmsprop's",
    )
    eps: Annotated[float, Traced()] = Field(
        default=1e-8,
        gt=0,
        description="added to a root mean square (adam, adamw, rmsprop), to a sum of squares (adagrad), to the norm "
        "that muon divides by",
    )
    decay_mask: tuple[str, ...] | None = Field(
        default=None, strict=False, description="patterns of the parameters that decay; null = matrices and tables"
    )
    clip: Annotated[float | None, Traced()] = Field(
        default=1.0, gt=0, description="largest global gradient norm, of what is not frozen; null = off"
    )
    clip_matrix: Annotated[float | None, Traced()] = Field(
        default=None,
        gt=0,
        description="largest norm of a matrix's gradient over that of the matrix (at least 1e-3), layer by layer and "
        "after clip; null = off",
    )
    clip_value: Annotated[float | None, Traced()] = Field(
        default=None, gt=0, description="largest entry of a gradient, after the other clips; null = off"
    )
    lr_factors: Annotated[dict[str, Annotated[float, Field(ge=0)]], AfterValidator(Factors), Traced()] = Field(
        default=Factors(),
        description="pattern of parameters -> factor of their whole update; the first pattern that matches counts",
    )
    freeze: tuple[str, ...] = Field(
        default=(), strict=False, description="patterns of the parameters that stay what they are"
    )
    ema: Annotated[float | None, Traced()] = Field(
        default=None,
        ge=0,
        lt=1,
        description="decay of a moving average of the weights, evaluated as loss/val_ema next to them; null = none",
    )
    accumulate: int = Field(default=1, ge=1, description="micro-batches an optimizer step; must divide data.batch")

    @property
    def patterned(self) -> bool:
        """True if some option can only be checked against the model's parameters."""
        return ":" in self.name or bool(self.freeze or self.lr_factors or self.decay_mask)


class TaskConfig(Section):
    """The purpose of the outputs, and the training loss. Held-out losses are always the plain mean."""

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
    """Length, intervals, device and precision of the training."""

    steps: int = Field(default=2000, ge=1, lt=2**31, description="optimizer steps")
    init_from: Folder | None = Field(
        default=None,
        description="run directory (runs/NAME/VARIANT) whose newest checkpoint gives the initial parameters, as far as "
        "paths and shapes agree; what matched is printed; null = fresh ones",
    )
    eval_every: int = Field(
        default=250, ge=1, description="steps between evaluations; step 0 and the last are always evaluated"
    )
    eval_batches: int | None = Field(
        default=20, ge=1, description="batches an evaluation; null = the whole held-out split"
    )
    checkpoint_every: int = Field(
        default=500, ge=1, description="steps between checkpoints; the last step is always saved"
    )
    on_nonfinite: Literal["stop", "skip"] = Field(
        default="stop",
        description="when a loss or gradient is not a finite number: stop the variant, or skip the update "
        "(docs/stopping.md)",
    )
    stop_when: tuple[Literal[STATES[1:]], ...] = Field(  # pyright: ignore[reportGeneralTypeIssues, reportInvalidTypeForm]
        default=(),
        strict=False,
        description="states of the verdict that end a variant early, saved, once its run so far has one of them "
        "(docs/stopping.md)",
    )
    steps_per_call: AutoOrCount = Field(
        default="auto",
        description="K, optimizer steps a dispatch; divides eval_every, checkpoint_every and instruments' intervals",
    )
    unroll: AutoOrCount = Field(default="auto", description="blocks unrolled in the scan over layers")
    remat: Literal["none", "dots", "full"] = Field(
        default="none",
        description="values of each block that the backward pass computes again instead of storing: dots = all but "
        "products with matrices, full = all; less memory and a longer step (docs/limits.md)",
    )
    fused_attention: bool = Field(
        default=True,
        description="cuDNN's attention in bfloat16 on one NVIDIA GPU since Ampere, for heads of a multiple of 8 up to "
        "128 without caps, ALiBi, attention dropout or a window of both sides; its last bits may differ between runs",
    )
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


_MEASURED: Any = {
    name: (int, Field(default=0, ge=0, description=instrument.meaning)) for name, instrument in INSTRUMENTS.items()
}


class InstrumentsConfig(create_model("InstrumentsSection", __base__=Section, **_MEASURED)):
    """Steps between the measurements of each instrument; 0 = never. Each runs between two dispatches of training, on
    the batches that come next, and changes nothing of it; docs/instruments.md has the meaning and the cost of each."""


class WatchConfig(Section):
    """Measurements during training, and their intervals."""

    every: int = Field(default=10, ge=0, description="steps between watched steps; 0 = never")
    counterfactual: bool = Field(
        default=True, description="also delta and gradients of the same weights with skip_scale 0"
    )
    matrices: bool = Field(
        default=False,
        description="also the series of each matrix, and other details (docs/tags.md), in TensorBoard and wandb; "
        "metrics.jsonl always has them",
    )
    instruments: InstrumentsConfig = InstrumentsConfig()
    diagnose_spikes: int = Field(
        default=2,
        ge=0,
        description="loss spikes of a variant, or of variants that are vmapped, that are replayed from a checkpoint to "
        "see what moved first (docs/verdict.md); 0 = never",
    )
    curvature_batches: int = Field(
        default=1, ge=1, description="batches whose mean loss sharpness and sharpness_adam are of"
    )

    @property
    def intervals(self) -> dict[str, int]:
        """Steps between measurements of the instruments that are on, by name."""
        return {name: every for name, every in self.instruments if every}


class LogConfig(Section):
    """Destinations of the log in addition to metrics.jsonl, which is always written."""

    tensorboard: bool = Field(default=True, description="TensorBoard's event files, in the run directory")
    wandb: bool = Field(
        default=False,
        description="Weights & Biases, a run a variant in the project `name`; WANDB_MODE=offline and so on as usual; "
        "needs the extra `[wandb]`",
    )
    csv: bool = Field(
        default=False, description="metrics.csv in the run directory, a column a tag, when a run ends or is stopped"
    )


class MeshConfig(Section):
    """Devices along each axis (docs/howto/devices.md); losses, delta and gradient norms are of the whole batch."""

    data: Literal[-1] | Annotated[int, Field(ge=1)] = Field(
        default=-1, description="parts of the batch; -1 = as many of the devices left as divide it"
    )
    fsdp: int = Field(
        default=1, ge=1, description="parts of the batch whose devices also share parameters and optimizer state"
    )
    tensor: int = Field(default=1, ge=1, description="parts of each matrix: of the heads and of the hidden layer")
    variants: int = Field(default=1, ge=1, description="parts of a vmapped group of variants")


class RunConfig(Section):
    """One variant, fully resolved."""

    name: str = Field(min_length=1, max_length=100, description="runs go to runs_dir/name/variant")
    seed: int = Field(default=0, ge=0, lt=2**32, description="of init and dropout")
    runs_dir: Folder = Field(default="runs", description="where runs go, relative to the current folder")
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    task: TaskConfig = TaskConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    train: TrainConfig = TrainConfig()
    watch: WatchConfig = WatchConfig()
    log: LogConfig = LogConfig()
    mesh: MeshConfig = MeshConfig()

    @property
    def data_seed(self) -> int:
        """The seed of the batch order."""
        return self.seed if self.data.seed is None else self.data.seed


class ExperimentConfig(RunConfig):
    """A whole YAML file: the base run, its named variants, a grid over keys, and the results it promises."""

    variants: dict[str, dict[str, Any]] = Field(default={}, description="name -> overrides by dotted key")
    sweep: dict[str, list[Any]] = Field(default={}, description="dotted key -> values; the grid of all of them")
    expect: dict[str, dict[str, Any]] = Field(
        default={}, description="variant -> tag -> [low, high], or verdict: state; checked after the run"
    )


def leaves(section: BaseModel, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The dotted keys of a config and their values, in the order of the schema."""
    for name, value in section:
        if isinstance(value, BaseModel):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
