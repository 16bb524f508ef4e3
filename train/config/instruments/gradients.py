"""Declarations of the instruments on gradients (train/instruments/gradients.py)."""

from ...text import LAYER
from .declaration import Instrument, Tags

GRADIENTS: dict[str, Instrument] = {
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
    "grad_mean": Instrument(
        ".gradients:grad_mean",
        "share of each gradient that the means over tokens make",
        (
            Tags(
                ("grad_mean/mean", "grad_mean/covariance"),
                "G = Σ_t a_t δ_tᵀ (a the input of a matrix, δ the gradient at its output, t over all N tokens of the "
                "batch) is N ā δ̄ᵀ + Σ_t (a_t - ā)(δ_t - δ̄)ᵀ; |each| / |G| by layer and matrix. Where tokens are "
                "alike the mean part is left, which V and O have and K has not (scores are blind to what all keys "
                "share; not so with rope, qk_norm or attention_cap): the mechanism of `dead_qk`. A covariance part "
                "below 1e-5 of G is lost in float32's rounding and left out",
            ),
        ),
        (
            ("mean part of the gradient, share, by block", f"grad_mean/mean/{LAYER}"),
            ("covariance part of the gradient, share, by block", f"grad_mean/covariance/{LAYER}"),
        ),
        precise=True,
    ),
    "stable_rank": Instrument(
        ".gradients:stable_rank",
        "stable rank of each matrix and of its gradient",
        (
            Tags(
                ("weight/stable_rank", "grad/stable_rank"),
                "|W|_F² / |W|_2², from 1 to the rank, by matrix; by layer the least of its matrices",
                "Rudelson & Vershynin 2007, math/0503442",
            ),
        ),
        (
            ("least stable rank of a matrix, by block", f"weight/stable_rank/{LAYER}"),
            ("least stable rank of a matrix's gradient, by block", f"grad/stable_rank/{LAYER}"),
        ),
        precise=True,
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
            Tags(("noise/block_scale",), "the same ratio over the parameters of each block"),
        ),
        (
            ("gradient noise scale, windows", "noise/scale"),
            ("gradient noise: |G|^2 and the noise's trace", "noise/(gradient_square|trace)"),
            ("gradient noise scale of each block, windows", f"noise/block_scale/{LAYER}"),
        ),
        batches=lambda watch: 8,
        long=True,
        unmet=lambda config: (
            None
            if config.data.batch > 1
            else f"compares parts of a batch: expected data.batch of at least 2, got {config.data.batch}"
        ),
    ),
}
