"""Charts of the Custom Scalars: each tag on one of them, and what is not shown."""

import re

from train.log.charts_layout import chart_layout, shown

LAYERS = [f"layer_{layer:03d}" for layer in range(3)]


def charts_of(tags, layout):
    return {
        title: [tag for tag in tags if re.match(pattern, tag)]
        for charts in layout.values()
        for title, pattern in charts.items()
    }


def test_each_tag_is_on_one_chart():
    wholes = ("delta/norm_log10", "delta_without/norm_log10", "delta/rms_weighted_log10", "gain", "update/ratio_log10")
    wholes += ("grad/norm_log10", "grad_without/norm_log10", "act/rms", "act/rank")
    tags = [f"{metric}/{layer}" for metric in wholes for layer in LAYERS]
    of_matrices = ("grad/norm_log10", "update/ratio_log10", "weight/norm")
    names = ("attn_q", "attn_q_2")
    matrices = [f"{metric}/{layer}/{matrix}" for metric in of_matrices for matrix in names for layer in LAYERS]
    flows = [f"flow/{what}_log10" for what in ("delta_first", "delta_middle", "delta_last")]
    flows += [f"{flow}/{what}_log10" for flow in ("flow", "flow_without") for what in ("delta_ratio", "delta_min")]
    heads = ["loss/val", *flows, "flow/qk_share_log10", "flow_without/qk_share_log10"]
    strangers = [
        *("grad/norm/layer_000", "delta/norm_log10/layer_000/attn_q"),
        *("grad/norm_log10/embed", "my/gain/layer_000"),
    ]
    charts = charts_of(tags + matrices + heads + strangers, chart_layout(names))
    assert len(charts) == 15 + len(heads)
    groups = list(charts.values())
    assert {len(group) for group in groups} == {1, 3}
    assert sorted(sum(groups, [])) == sorted(tags + matrices + heads)
    assert charts["attn_q: log10 |grad|, by block"] == [f"grad/norm_log10/{layer}/attn_q" for layer in LAYERS]
    fewer = charts_of(tags + matrices, chart_layout(names, without=False))
    assert charts.keys() - fewer.keys() == {title for title in charts if "without" in title or "removed" in title}
    assert charts["log10 |delta_l|"] == [f"delta/norm_log10/{layer}" for layer in LAYERS]


def test_what_is_not_shown_has_no_chart():
    charts = chart_layout()
    patterns = [pattern for group in charts.values() for pattern in group.values()]
    for metric in ("delta/rms_weighted_log10", "grad_without/norm_log10", "weight/norm", "grad/norm_log10"):
        tag = f"{metric}/layer_000" + "/attn_q" * (metric == "grad/norm_log10")
        assert not shown(tag) and not any(re.match(pattern, tag) for pattern in patterns)
    assert shown("attn/entropy/layer_000/head_01") and shown("grad/norm_log10/embed")
