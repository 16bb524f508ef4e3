"""Series that TensorBoard shows, and its Custom Scalars: an overview, then all layers of a metric on one chart."""

import re
from collections.abc import Mapping, Sequence
from functools import cache

from ..config.instruments import INSTRUMENTS
from ..text import LAYER

Layout = Mapping[str, Mapping[str, str]]  # category -> title -> anchored pattern of the tags on that chart

# Series that only `watch.matrices` shows: at most 120 are left for 12 blocks. Parts of a layer other than heads, and
# what the rest shows in another way.
_DETAILS = re.compile(rf".+/{LAYER}/(?!head_).+|(delta/rms_weighted_log10|grad_without/norm_log10|weight/norm)/.+")


@cache
def shown(tag: str) -> bool:
    """Returns True for a tag that is shown without `watch.matrices`."""
    return _DETAILS.fullmatch(tag) is None


def chart_layout(matrices: Sequence[str] = (), without: bool = True, instruments: Sequence[str] = ()) -> Layout:
    """The charts of a model; `matrices` of its blocks, such as `attn_q`, if `watch.matrices` shows the details.

    TensorBoard merges the layouts of its runs by title, so nothing of one run alone, such as its depth, is in a title.

    Charts of the counterfactual (`without`) and of `instruments` only where they are measured: an empty chart explains
    nothing.
    """
    twin, details = "without skip (same weights)", bool(matrices)
    read = [(True, *entry) for name in instruments for entry in INSTRUMENTS[name].charts]

    def each_matrix(metric: str, what: str) -> list[tuple[bool, str, str]]:
        return [(True, f"{name}: {what}, by block", f"{metric}/{LAYER}/{re.escape(name)}") for name in matrices]

    # category -> (drawn, title, pattern)
    categories: dict[str, list[tuple[bool, str, str]]] = {
        "overview": [
            (True, "held-out loss", "loss/val"),
            (True, "log10 |delta_0|/|delta_L|; 0: all arrives", "flow/delta_ratio_log10"),
            (without, "log10 |delta_0|/|delta_L|, skips removed", "flow_without/delta_ratio_log10"),
            (True, "log10 |delta| at the first block", "flow/delta_first_log10"),
            (True, "log10 |delta| in the middle", "flow/delta_middle_log10"),
            (True, "log10 |delta| after the last block", "flow/delta_last_log10"),
        ],
        "delta: gradient at the residual stream": [
            (True, "log10 |delta_l|", f"delta/norm_log10/{LAYER}"),
            (without, f"log10 |delta_l| {twin}", f"delta_without/norm_log10/{LAYER}"),
            (True, "gain |delta_l| / |delta_(l+1)|, by block", f"gain/{LAYER}"),
            (True, "log10 of the least |delta_l| / |delta_L| over depth", "flow/delta_min_log10"),
            (without, f"log10 of the least |delta_l| / |delta_L| {twin}", "flow_without/delta_min_log10"),
            (details, "log10 of |delta_l| rms(x_l): to compare designs", f"delta/rms_weighted_log10/{LAYER}"),
        ],
        "gradient of each block's weights": [
            (True, "log10 |grad|, by block", f"grad/norm_log10/{LAYER}"),
            (without and details, f"log10 |grad| {twin}, by block", f"grad_without/norm_log10/{LAYER}"),
            (True, "log10 of the share of Q and K: their |grad| over that of V and O", "flow/qk_share_log10"),
            (without, f"log10 of the share of Q and K {twin}", "flow_without/qk_share_log10"),
        ],
        "update of each block's weights": [
            (True, "log10 |update| / |weight|, by block", f"update/ratio_log10/{LAYER}"),
        ],
        "activations": [
            (True, "rms of x_l", f"act/rms/{LAYER}"),
            (True, "rank of x_l: 0 = all tokens alike", f"act/rank/{LAYER}"),
        ],
        "instruments": read,
        "gradient of each matrix": each_matrix("grad/norm_log10", "log10 |grad|"),
        "update of each matrix": each_matrix("update/ratio_log10", "log10 |update| / |weight|"),
        "norm of each matrix": each_matrix("weight/norm", "|weight|"),
    }
    layout = {
        category: {title: rf"^{pattern}$" for drawn, title, pattern in charts if drawn}
        for category, charts in categories.items()
    }
    return {category: charts for category, charts in layout.items() if charts}
