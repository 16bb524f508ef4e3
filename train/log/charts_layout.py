"""TensorBoard's Custom Scalars: all layers of a metric on one chart."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ..config.instruments import INSTRUMENTS
from ..text import LAYER

Charts = dict[str, list[Any]]  # title -> ["Multiline", [anchored tag pattern, ...]], as tensorboardX takes it
Layout = Mapping[str, Charts]  # by category


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
    read = charts(*(entry for name in instruments for entry in INSTRUMENTS[name].charts))
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
