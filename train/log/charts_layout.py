"""TensorBoard's Custom Scalars: all layers of a metric on one chart."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ..text import LAYER

Charts = dict[str, list[Any]]  # title -> ["Multiline", [anchored tag pattern, ...]], as tensorboardX takes it
Layout = Mapping[str, Charts]  # by category

# The charts of each instrument (docs/instruments.md): title, and the tags on it.
_INSTRUMENTS: dict[str, tuple[tuple[str, str], ...]] = {
    "attention": (
        ("attention entropy: 1 = all keys alike, by block", f"attn/entropy/{LAYER}"),
        ("largest attention logit, by block", f"attn/logit_max/{LAYER}"),
    ),
    "units": (("dead units, share of the MLP, by block", f"act/dead_units/{LAYER}"),),
    "entries": (("gradient entries that are exactly 0, share, by block", f"grad/zero_fraction/{LAYER}"),),
    "weight_dot_grad": (("<W, dL/dW>, by block", f"grad/dot_weight/{LAYER}"),),
    "split": (
        ("log10 of the part of delta_l that comes past block l", f"split/skip_log10/{LAYER}"),
        ("log10 of the part of delta_l that comes through block l", f"split/branch_log10/{LAYER}"),
        ("cosine of the two parts, by block", f"split/cosine/{LAYER}"),
    ),
    "twins": (
        ("cosine of the gradients with and without skip, by block and all", f"cosine/without_skip/({LAYER}|all)"),
    ),
    "successive": (
        ("cosine of this and the next step's gradient, by block and all", f"cosine/next_step/({LAYER}|all)"),
    ),
    "noise": (
        ("gradient noise scale, windows", "noise/scale"),
        ("gradient noise: |G|^2 and the noise's trace", "noise/(gradient_square|trace)"),
    ),
    "sharpness": (("Hessian: ends of its spectrum and threshold", "sharpness/(top|bottom|threshold)"),),
    "sharpness_adam": (
        ("Hessian as Adam sees it: ends of its spectrum and threshold", "sharpness_adam/(top|bottom|threshold)"),
    ),
    "jacobian": (
        ("log10 of the largest singular value of block l", f"jacobian/largest_log10/{LAYER}"),
        ("log10 of the rms singular value of block l", f"jacobian/rms_log10/{LAYER}"),
        ("log10 of the singular values of the whole stack", "jacobian/stack_(largest|rms|median|smallest)_log10"),
    ),
    "landscape": (("where the loss is lowest along a line", "landscape/(update|random)_lowest_at"),),
}


def chart_layout(matrices: Sequence[str], without: bool = True, instruments: Sequence[str] = ()) -> Layout:
    """The charts of a model whose blocks have `matrices` such as `attn_q`.

    TensorBoard merges the layouts of its runs by title, so nothing of one run alone, such as its depth, is in a title.

    Charts of the counterfactual (`without`) and of `instruments` only where they are measured: an empty chart explains
    nothing.
    """

    def charts(*entries: tuple[str, str]) -> Charts:
        return {title: ["Multiline", [rf"^{pattern}$"]] for title, pattern in entries}

    def each_matrix(metric: str, what: str) -> Charts:
        return charts(*((f"{name}: {what}, by block", f"{metric}/{LAYER}/{re.escape(name)}") for name in matrices))

    delta_without = ("log10 |delta_l| without skip (same weights)", f"delta_without/norm_log10/{LAYER}")
    grad_without = ("log10 |grad| without skip (same weights), by block", f"grad_without/norm_log10/{LAYER}")
    read = charts(*(entry for name in instruments for entry in _INSTRUMENTS[name]))
    return {
        "delta: gradient at the residual stream": charts(
            ("log10 |delta_l|", f"delta/norm_log10/{LAYER}"),
            *([delta_without] if without else []),
            ("gain |delta_l| / |delta_(l+1)|, by block", f"gain/{LAYER}"),
            ("log10 of |delta_l| rms(x_l): to compare designs", f"delta/rms_weighted_log10/{LAYER}"),
        ),
        "gradient of each block's weights": charts(
            ("log10 |grad|, by block", f"grad/norm_log10/{LAYER}"),
            *([grad_without] if without else []),
        ),
        "update of each block's weights": charts(
            ("log10 |update| / |weight|, by block", f"update/ratio_log10/{LAYER}"),
        ),
        "activations": charts(
            ("rms of x_l", f"act/rms/{LAYER}"),
            ("rank of x_l: 0 = all tokens alike", f"act/rank/{LAYER}"),
        ),
        **({"instruments": read} if read else {}),
        "gradient of each matrix": each_matrix("grad/norm_log10", "log10 |grad|"),
        "update of each matrix": each_matrix("update/ratio_log10", "log10 |update| / |weight|"),
        "norm of each matrix": each_matrix("weight/norm", "|weight|"),
    }
