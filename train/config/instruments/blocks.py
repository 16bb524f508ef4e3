"""Declarations of the instruments inside blocks (train/instruments/blocks.py)."""

from ...text import LAYER
from .declaration import Instrument, Tags

BLOCKS: dict[str, Instrument] = {
    "attention": Instrument(
        ".blocks:attention",
        "entropy of the attention, its largest score and its sink, by head; largest entry of the stream",
        (
            Tags(
                ("attn/entropy", "attn/logit_max"),
                "by layer, and by head under `/head_NN`. Entropy of softmax(scores) over the visible keys divided by "
                "ln(their count), mean over queries that see at least two: 1 looks at all keys alike, 0 at one. "
                "Largest score that is not masked. Under value_skipinit of the softmax alone",
                "Zhai et al. 2023, 2303.06296; Dehghani et al. 2023, 2302.05442",
            ),
            Tags(
                ("attn/sink",),
                "weight that the first token gets, mean over the same queries: an attention sink takes most of it",
                "Xiao et al. 2023, 2309.17453",
            ),
            Tags(
                ("act/peak",),
                "max|x_l| / rms(x_l) of the stream that enters block l: massive activations reach hundreds",
                "Sun et al. 2024, 2402.17762",
            ),
        ),
        (
            ("attention entropy: 1 = all keys alike, by block", f"attn/entropy/{LAYER}"),
            ("largest attention logit, by block", f"attn/logit_max/{LAYER}"),
            ("attention to the first token, by block", f"attn/sink/{LAYER}"),
            ("largest entry of the stream over its rms, by block", f"act/peak/{LAYER}"),
        ),
        {
            "attn/entropy": "the attention entropy of block {}",
            "attn/logit_max": "the largest attention score of block {}",
            "attn/sink": "the attention of block {} to the first token",
            "act/peak": "the stream's largest entry over its rms at depth {}",
        },
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
    "ledger": Instrument(
        ".blocks:ledger",
        "size and direction of each sublayer's output against the stream, and delta at that output",
        (
            Tags(
                tuple(f"ledger/{part}_{key}" for part in ("attn", "mlp") for key in ("ratio_log10", "cosine")),
                "of attention and of the MLP of block l: rms(F) / rms(x) and the cosine of F and x, over the whole "
                "batch. F is the sublayer's output before the rule scales or norms it, x the argument of its input "
                "norm (without one before it, of the sublayer): what it reads, of several streams or sources their "
                "mix. For pre_ln |x + F|² = |x|² (1 + 2 cosine ratio + ratio²) is |x|² of the next sublayer",
            ),
            Tags(
                tuple(f"ledger/{part}_delta_log10" for part in ("attn", "mlp")),
                "|∂L/∂F|: for pre_ln delta of the stream after the addition, so that the MLP's is |δ_(l+1)|",
            ),
        ),
        tuple(
            (f"{title} of {what}, by block", f"ledger/{part}_{key}/{LAYER}")
            for part, what in (("attn", "attention"), ("mlp", "the MLP"))
            for key, title in (
                ("ratio_log10", "log10 of rms(F)/rms(x)"),
                ("cosine", "cosine of F and x"),
                ("delta_log10", "log10 of delta at the output"),
            )
        ),
    ),
    "depth_loss": Instrument(
        ".blocks:depth_loss",
        "loss with the head read at every depth, and without each block",
        (
            Tags(
                ("depth_loss/lens",),
                "the loss with the final norm and the head on x_l (logit lens), l = 0 to L: the last is the loss "
                "itself, without dropout",
                "nostalgebraist 2020",
            ),
            Tags(
                ("depth_loss/ablated",),
                "the loss without block l, whose input goes on to the next one: less the loss it is what the block "
                "is worth to the others",
                "Veit et al. 2016, 1605.06431",
            ),
        ),
        (
            ("loss with the head at depth l", f"depth_loss/lens/{LAYER}"),
            ("loss without block l", f"depth_loss/ablated/{LAYER}"),
        ),
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
        long=True,
    ),
}
