"""Declarations of the instruments: their keys under `watch.instruments`, tags, charts, and when each can measure.

The config's keys and checks, TensorBoard's Custom Scalars, and the table of docs/instruments.md derive from
`INSTRUMENTS`. No JAX here; each declaration names the function that measures. To add an instrument, set
`INSTRUMENTS[name]` before the config's schema is imported:

    INSTRUMENTS["weights"] = Instrument("my_instruments:weights", "largest weight", (Tags(("weight/max",), "..."),))
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from model.rules import object_at

from ..text import LAYER

if TYPE_CHECKING:
    from .schema import RunConfig, WatchConfig


@dataclass(frozen=True)
class Tags:
    """Tags that an instrument logs, without their parts (`/layer_000`), and what their values mean."""

    names: tuple[str, ...]
    meaning: str
    source: str = ""


@dataclass(frozen=True)
class Instrument:
    """One instrument."""

    code: str  # module:function of a Snapshot (train/instruments/snapshot.py); a leading dot is train/instruments
    meaning: str  # in the config's documentation
    tags: tuple[Tags, ...]
    charts: tuple[tuple[str, str], ...] = ()  # (title, pattern of the tags on it)
    lines: Mapping[str, str] = field(default_factory=dict)  # curves that become pictures: tag, and what each is along
    histograms: bool = False
    matrices: bool = False  # that become pictures
    batches: Callable[["WatchConfig"], int] = lambda watch: 1  # that it measures on
    optimizer: bool = False  # it needs the optimizer's state
    precise: bool = False  # products in full float32, also where training multiplies in less
    long: bool = False  # many passes through the network: its program is worth the compiler's time
    unmet: Callable[["RunConfig"], str | None] = lambda config: None  # what a config lacks for it
    optional: bool = False  # where that is no error: a variant without it has no such tags

    def applies(self, config: "RunConfig") -> bool:
        """Under this config there is something to measure."""
        return self.unmet(config) is None

    @property
    def pictured(self) -> bool:
        """It leaves histograms or pictures, which a resumed run has to draw again."""
        return self.histograms or self.matrices or bool(self.lines)

    def function(self) -> Any:
        """The measuring function; imports JAX. Raises DeclarationError."""
        return object_at(self.code, __name__.replace(".config.", "."))


def problems(config: "RunConfig") -> Iterator[tuple[str, str]]:
    """Problems of the instruments that are on, as (dotted key, message)."""
    for name in config.watch.intervals:
        instrument = INSTRUMENTS[name]
        if not instrument.optional and (message := instrument.unmet(config)) is not None:
            yield f"watch.instruments.{name}", message


INSTRUMENTS: dict[str, Instrument] = {
    "attention": Instrument(
        ".blocks:attention",
        "entropy of the attention and its largest score, by head",
        (
            Tags(
                ("attn/entropy", "attn/logit_max"),
                "by layer, and by head under `/head_NN`. Entropy of softmax(scores) over the visible keys divided by "
                "ln(their count), mean over queries that see at least two: 1 looks at all keys alike, 0 at one. "
                "Largest score that is not masked. Under value_skipinit of the softmax alone",
                "Zhai et al. 2023, 2303.06296; Dehghani et al. 2023, 2302.05442",
            ),
        ),
        (
            ("attention entropy: 1 = all keys alike, by block", f"attn/entropy/{LAYER}"),
            ("largest attention logit, by block", f"attn/logit_max/{LAYER}"),
        ),
    ),
    "units": Instrument(
        ".blocks:units",
        "MLP units that are zero for every token of the batch",
        (
            Tags(
                ("act/dead_units",),
                "fraction of a layer's MLP units that are exactly 0 for every token of the batch. For ReLU; smooth "
                "activations have none",
                "Lu et al. 2019, 1903.06733",
            ),
        ),
        (("dead units, share of the MLP, by block", f"act/dead_units/{LAYER}"),),
    ),
    "entries": Instrument(
        ".gradients:entries",
        "zeros among a gradient's entries, and the histogram of their sizes",
        (
            Tags(("grad/zero_fraction",), "share of a gradient's entries that are exactly 0, by layer and matrix"),
            Tags(
                ("grad/histogram_log10",),
                "TensorBoard histogram of log10 of the absolute entries of each layer's gradient that are not 0, in "
                "octaves below the largest; the lowest of 64 buckets also holds all that is smaller",
            ),
        ),
        (("gradient entries that are exactly 0, share, by block", f"grad/zero_fraction/{LAYER}"),),
        histograms=True,
    ),
    "weight_dot_grad": Instrument(
        ".gradients:weight_dot_grad",
        "<W, dL/dW> of each matrix",
        (
            Tags(
                ("grad/dot_weight",),
                "⟨W, ∂L/∂W⟩ by layer and matrix: 0 where a norm takes the scale of W out again; positive: shrinking W "
                "lowers the loss",
            ),
        ),
        (("<W, dL/dW>, by block", f"grad/dot_weight/{LAYER}"),),
    ),
    "split": Instrument(
        ".blocks:split",
        "delta in two parts: past the sublayers of a block, and through them",
        (
            Tags(
                ("split/skip_log10", "split/branch_log10", "split/cosine"),
                "δ_l = skip + branch: what reaches x_l past the sublayers of block l (for pre_ln s²·δ_(l+1)), what "
                "comes through them, and the cosine of the two: |δ_l|² = |skip|² + 2 cosine |skip| |branch| + "
                "|branch|². A branch below 1e-5 of δ is lost in float32's rounding and left out",
            ),
        ),
        (
            ("log10 of the part of delta_l that comes past block l", f"split/skip_log10/{LAYER}"),
            ("log10 of the part of delta_l that comes through block l", f"split/branch_log10/{LAYER}"),
            ("cosine of the two parts, by block", f"split/cosine/{LAYER}"),
        ),
    ),
    "residual": Instrument(
        ".blocks:residual",
        "the residual rule's own parameters",
        (
            Tags(
                ("residual",),
                "by name and layer, such as `residual/alpha_1/layer_000`: a number as it is, of a vector or matrix the "
                "root mean square. Pictures of what mixes streams or depths, a row or more a block: `read`, `across` "
                "(from, to) and `write` of hyper_connections and mhc, without what depends on the token; `mixing` of "
                "attnres, the sources (columns) of what the MLP, then the next block reads, means over tokens and "
                "heads; `alpha` of denseformer. Not for rules without parameters",
            ),
        ),
        (("the residual rule's own parameters, by block", f"residual/.+/{LAYER}"),),
        matrices=True,
        unmet=lambda config: (
            None if config.model.rule.growth else f"residual.rule {config.model.residual.rule} has no parameters"
        ),
        optional=True,
    ),
    "twins": Instrument(
        ".gradients:twins",
        "cosine between the gradient and that of the same weights with skip_scale 0",
        (
            Tags(
                ("cosine/without_skip",),
                "cosine between the gradient and that of the same weights and batch at skip scale 0, by layer and over "
                "`all` parameters. Not for rules without a skip scale",
            ),
        ),
        (("cosine of the gradients with and without skip, by block and all", f"cosine/without_skip/({LAYER}|all)"),),
        unmet=lambda config: (
            None if config.model.rule.additive else f"needs a skip scale, residual.rule {config.model.residual.rule}"
        ),
        optional=True,
    ),
    "successive": Instrument(
        ".gradients:successive",
        "cosine between the gradients of this step and the next",
        (
            Tags(
                ("cosine/next_step",),
                "cosine between this step's gradient and the next one's, at the weights that this step leads to and on "
                "the next batch",
            ),
        ),
        (("cosine of this and the next step's gradient, by block and all", f"cosine/next_step/({LAYER}|all)"),),
        batches=lambda watch: 2,
        optimizer=True,
    ),
    "noise": Instrument(
        ".gradients:noise_scale",
        "gradient noise scale",
        (
            Tags(
                ("noise/scale", "noise/gradient_square", "noise/trace"),
                "S / |G|² in windows: the batch size at which noise and signal are alike. |G|² and S, averaged over 8 "
                "batches and up to 8 parts of each (a prime batch: its windows) before they are divided. Unbiased "
                "where all windows weigh the same; far from enough data either may be negative",
                "McCandlish et al. 2018, 1812.06162, appendix A.1",
            ),
        ),
        (
            ("gradient noise scale, windows", "noise/scale"),
            ("gradient noise: |G|^2 and the noise's trace", "noise/(gradient_square|trace)"),
        ),
        batches=lambda watch: 8,
        long=True,
        unmet=lambda config: (
            None
            if config.data.batch > 1
            else f"compares parts of a batch: expected data.batch of at least 2, got {config.data.batch}"
        ),
    ),
    "sharpness": Instrument(
        ".curvature:sharpness",
        "ends of the Hessian's spectrum",
        (
            Tags(
                ("sharpness/top", "sharpness/bottom"),
                "largest and most negative eigenvalue of the training loss's Hessian on one batch "
                "(`watch.curvature_batches`: the mean of several), by 24 Lanczos steps with full reorthogonalization. "
                "A negative bottom: a saddle. Over all parameters, frozen ones too",
                "Ghorbani et al. 2019, 1901.10159",
            ),
            Tags(
                ("sharpness/top_residual", "sharpness/bottom_residual"),
                "|Hv - λv| of the unit vector found: an eigenvalue lies within it",
            ),
            Tags(
                ("sharpness/threshold",),
                "the curvature beyond which the rule diverges on a parabola at the next step's rate: 2/lr for sgd, "
                "(2 + 2β)/lr momentum, (2 + 2β)/((1 + 2β) lr) nesterov; others have none, nor has a run with "
                "`optimizer.lr_factors` or `model.base_width`, whose parameters have rates of their own",
                "Cohen et al. 2021, 2103.00065",
            ),
        ),
        (("Hessian: ends of its spectrum and threshold", "sharpness/(top|bottom|threshold)"),),
        batches=lambda watch: watch.curvature_batches,
        precise=True,
        long=True,
    ),
    "sharpness_adam": Instrument(
        ".curvature:sharpness_adam",
        "the same, preconditioned as adam and adamw do",
        (
            Tags(
                tuple(
                    f"sharpness_adam/{part}"
                    for part in ("top", "bottom", "top_residual", "bottom_residual", "threshold")
                ),
                "the same of P^(-1/2) H P^(-1/2) with Adam's P = (1 - β₁^t)(sqrt(v̂) + eps); threshold (2 + 2β₁)/((1 - "
                "β₁) lr). From step 1 on, and not with `optimizer.freeze`. Entries whose first gradient is still to "
                "come have P near eps. Weight decay and clipping are not part of it",
                "Cohen et al. 2022, 2207.14484",
            ),
        ),
        (("Hessian as Adam sees it: ends of its spectrum and threshold", "sharpness_adam/(top|bottom|threshold)"),),
        batches=lambda watch: watch.curvature_batches,
        optimizer=True,
        precise=True,
        long=True,
        unmet=lambda config: (
            f"is for optimizer.name adam and adamw, got {config.optimizer.name}"
            if config.optimizer.name not in ("adam", "adamw")
            else "needs optimizer.freeze []: adam knows no scale of what is frozen"
            if config.optimizer.freeze
            else None
        ),
    ),
    "jacobian": Instrument(
        ".blocks:jacobian",
        "singular values of the Jacobian of each block and of them all",
        (
            Tags(
                tuple(f"jacobian/{part}_log10" for part in ("largest", "rms", "median", "smallest")),
                "singular values of ∂x_(l+1)/∂x_l for the first example, of the whole carry where a rule has several "
                "parts. Exact up to 1,024 entries (tokens × width); else the largest by 24 power iterations (a lower "
                "bound) and the rms by 8 random probes. Values below rounding (n·eps·largest) are left out; of a "
                "stack's product the small ones are known less well",
                "Saxe et al. 2014, 1312.6120; Pennington et al. 2017, 1711.04735",
            ),
            Tags(
                tuple(f"jacobian/stack_{part}_log10" for part in ("largest", "rms", "median", "smallest")),
                "the same of ∂x_L/∂x_0, of unlimited range",
            ),
            Tags(
                ("jacobian/residual", "jacobian/stack_residual"),
                "|JᵀJv - σ²v| / σ² of the largest; 0 where it is exact",
            ),
        ),
        (
            ("log10 of the largest singular value of block l", f"jacobian/largest_log10/{LAYER}"),
            ("log10 of the rms singular value of block l", f"jacobian/rms_log10/{LAYER}"),
            ("log10 of the singular values of the whole stack", "jacobian/stack_(largest|rms|median|smallest)_log10"),
        ),
        precise=True,
    ),
    "landscape": Instrument(
        ".curvature:loss_landscape",
        "the loss along the next update and along a random direction",
        (
            Tags(
                ("landscape/update_lowest_at", "landscape/update"),
                "the loss of one batch along the next update, at -5 to 15 times it: where it is lowest, and a picture. "
                "1 would be the best step on this batch; large: the rate is small for where the training is",
            ),
            Tags(
                ("landscape/random_lowest_at", "landscape/random"),
                "along a random direction with each matrix as long as the weights', from -1 to 1",
                "Li et al. 2018, 1712.09913",
            ),
        ),
        (("where the loss is lowest along a line", "landscape/(update|random)_lowest_at"),),
        lines={
            "landscape/update": "the next update",
            "landscape/random": "a random direction as long as the weights",
        },
        optimizer=True,
        precise=True,
        long=True,
    ),
}


def lines() -> dict[str, str]:
    """The direction of each curve's line in words, by tag."""
    return {tag: what for instrument in INSTRUMENTS.values() for tag, what in instrument.lines.items()}
