"""TensorBoard's Custom Scalars: all layers of a metric on one chart."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

Charts = dict[str, list[Any]]  # title -> ["Multiline", [anchored tag pattern, ...]], as tensorboardX takes it
Layout = Mapping[str, Charts]  # by category

LAYER = r"layer_\d+"
# The charts of each instrument (docs/instruments.md): title, and the tags on it. Of layers where `{blocks}` is said.
_INSTRUMENTS: dict[str, tuple[tuple[str, str], ...]] = {
    "attention": (
        ("attention entropy: 1 = all keys alike, {blocks}", f"attn/entropy/{LAYER}"),
        ("largest attention logit, {blocks}", f"attn/logit_max/{LAYER}"),
    ),
    "units": (("dead units, share of the MLP, {blocks}", f"act/dead_units/{LAYER}"),),
    "entries": (("gradient entries that are exactly 0, share, {blocks}", f"grad/zero_fraction/{LAYER}"),),
    "weight_dot_grad": (("<W, dL/dW>, {blocks}", f"grad/dot_weight/{LAYER}"),),
    "split": (
        ("log10 of the part of delta_l that comes past block l, {blocks}", f"split/skip_log10/{LAYER}"),
        ("log10 of the part of delta_l that comes through block l, {blocks}", f"split/branch_log10/{LAYER}"),
        ("cosine of the two parts, {blocks}", f"split/cosine/{LAYER}"),
    ),
    "twins": (
        ("cosine of the gradients with and without skip, {blocks} and all", f"cosine/without_skip/({LAYER}|all)"),
    ),
    "successive": (
        ("cosine of this and the next step's gradient, {blocks} and all", f"cosine/next_step/({LAYER}|all)"),
    ),
    "noise": (
        ("gradient noise scale, windows", "noise/scale"),
        ("its parts: |G|^2 and the noise's trace", "noise/(gradient_square|trace)"),
    ),
    "sharpness": (("Hessian: ends of its spectrum and threshold", "sharpness/(top|bottom|threshold)"),),
    "sharpness_adam": (
        ("Hessian as Adam sees it: ends of its spectrum and threshold", "sharpness_adam/(top|bottom|threshold)"),
    ),
    "jacobian": (
        ("log10 of the largest singular value of block l, {blocks}", f"jacobian/largest_log10/{LAYER}"),
        ("log10 of the rms singular value of block l, {blocks}", f"jacobian/rms_log10/{LAYER}"),
        ("log10 of the singular values of the whole stack", "jacobian/stack_(largest|rms|median|smallest)_log10"),
    ),
    "landscape": (("where the loss is lowest along a line", "landscape/(update|random)_lowest_at"),),
}


def chart_layout(depth: int, matrices: Sequence[str], without: bool = True, instruments: Sequence[str] = ()) -> Layout:
    """The charts of a model of `depth` blocks with `matrices` such as `attn_q`.

    Charts of the counterfactual (`without`) and of `instruments` only where they are measured: an empty chart explains
    nothing.
    """
    blocks, ends = f"l = 0 to {depth - 1}", f"l = 0 to {depth}"

    def charts(*entries: tuple[str, str]) -> Charts:
        return {title: ["Multiline", [rf"^{pattern}$"]] for title, pattern in entries}

    def each_matrix(metric: str, what: str) -> Charts:
        return charts(*((f"{name}: {what}, {blocks}", f"{metric}/{LAYER}/{re.escape(name)}") for name in matrices))

    delta_without = (f"log10 |delta_l| without skip (same weights), {ends}", f"delta_without/norm_log10/{LAYER}")
    grad_without = (f"log10 |grad| without skip (same weights), {blocks}", f"grad_without/norm_log10/{LAYER}")
    read = charts(*((title.format(blocks=blocks), tags) for name in instruments for title, tags in _INSTRUMENTS[name]))
    return {
        "delta: gradient at the residual stream": charts(
            (f"log10 |delta_l|, {ends}", f"delta/norm_log10/{LAYER}"),
            *([delta_without] if without else []),
            (f"gain |delta_l| / |delta_(l+1)|, {blocks}", f"gain/{LAYER}"),
            (f"log10 of |delta_l| rms(x_l): to compare designs, {ends}", f"delta/rms_weighted_log10/{LAYER}"),
        ),
        "gradient of each block's weights": charts(
            (f"log10 |grad|, {blocks}", f"grad/norm_log10/{LAYER}"),
            *([grad_without] if without else []),
        ),
        "update of each block's weights": charts(
            (f"log10 |update| / |weight|, {blocks}", f"update/ratio_log10/{LAYER}"),
        ),
        "activations": charts(
            (f"rms of x_l, {ends}", f"act/rms/{LAYER}"),
            (f"rank of x_l: 0 = all tokens alike, {ends}", f"act/rank/{LAYER}"),
        ),
        **({"instruments": read} if read else {}),
        "gradient of each matrix": each_matrix("grad/norm_log10", "log10 |grad|"),
        "update of each matrix": each_matrix("update/ratio_log10", "log10 |update| / |weight|"),
        "norm of each matrix": each_matrix("weight/norm", "|weight|"),
    }
