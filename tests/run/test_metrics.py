"""Rows of metrics.jsonl: their tags, and figures that agree with each other."""

import json
import math

import pytest

from runs import rows

MATRICES = ("attn_q", "attn_k", "attn_v", "attn_o", "mlp_in", "mlp_out", "norm_1", "norm_2")
LAYERS, ENDS = ("layer_000", "layer_001"), ("layer_000", "layer_001", "layer_002")


def watched_tags() -> set[str]:
    """docs/tags.md, for two layers of pre_ln with learned positions and a tied head."""
    tags = {"grad/global_preclip_log10", "grad/clip_factor", "grad/qk_rounded"}
    tags |= {f"flow/delta_{place}_log10" for place in ("first", "middle", "last")}
    for suffix in ("", "_without"):
        tags |= {f"flow{suffix}/{what}_log10" for what in ("delta_ratio", "delta_min", "qk_share")}
        tags |= {f"delta{suffix}/norm_log10/{layer}" for layer in ENDS}
        tags |= {f"grad{suffix}/norm_log10/{end}" for end in ("embed", "lookup", "head", "positions", "norm_f")}
        tags |= {f"grad{suffix}/norm_log10/{layer}" for layer in LAYERS}
        tags |= {f"grad{suffix}/norm_log10/{layer}/{matrix}" for layer in LAYERS for matrix in MATRICES}
    tags |= {f"gain/{layer}" for layer in LAYERS} | {f"delta/rms_weighted_log10/{layer}" for layer in ENDS}
    for metric in ("update/ratio_log10", "weight/norm"):
        tags |= {f"{metric}/{layer}" for layer in LAYERS}
        tags |= {f"{metric}/{layer}/{matrix}" for layer in LAYERS for matrix in MATRICES}
    return tags | {f"act/{what}/{layer}" for what in ("rms", "rank") for layer in ENDS}


def test_each_row_has_the_tags_of_the_docs(trained):
    _, run = trained
    of_steps = {"loss/train", "loss/spike", "optim/lr"}
    of_evaluations = {"loss/val", "perplexity/val", "accuracy/val", "loss/floor_unigram"}
    logged = rows(run)
    assert list(logged) == list(range(0, 41, 5))
    for step, row in logged.items():
        expected = (watched_tags() if step < 40 else set()) | (of_steps if step else set())
        expected |= of_evaluations if step % 20 == 0 else set()
        assert row.keys() == expected, step
        assert all(isinstance(value, float) and math.isfinite(value) for value in row.values())
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    timed = [{tag: x for tag, x in line.items() if tag.startswith("perf/")} for line in lines]
    assert any(timed) and all(line.keys() in (set(), {"perf/steps_per_s", "perf/tokens_per_s"}) for line in timed)
    assert all(line["perf/tokens_per_s"] == pytest.approx(32 * line["perf/steps_per_s"]) for line in timed if line)


def test_the_figures_of_a_row_agree_with_each_other(trained):
    _, run = trained
    for step, row in rows(run).items():
        if "loss/val" in row:
            assert row["perplexity/val"] == pytest.approx(math.exp(row["loss/val"]), rel=1e-12)
        if step == 40:
            continue
        for suffix in ("", "_without"):
            for layer in LAYERS:
                parts = [10 ** (2 * row[f"grad{suffix}/norm_log10/{layer}/{matrix}"]) for matrix in MATRICES]
                assert 2 * row[f"grad{suffix}/norm_log10/{layer}"] == pytest.approx(math.log10(sum(parts)), abs=1e-5)
        for low, high in zip(ENDS, ENDS[1:], strict=False):
            gain = row[f"delta/norm_log10/{low}"] - row[f"delta/norm_log10/{high}"]
            assert math.log10(row[f"gain/{low}"]) == pytest.approx(gain, abs=1e-9)
        first, middle, last = (row[f"delta/norm_log10/{end}"] for end in ENDS)
        flow = [row[f"flow/delta_{what}_log10"] for what in ("first", "middle", "last", "ratio", "min")]
        assert flow == [first, middle, last, first - last, min(first - last, middle - last, 0)]
        whole = [*LAYERS, "embed", "positions", "norm_f"]
        total = sum(10 ** (2 * row[f"grad/norm_log10/{part}"]) for part in whole)
        assert 2 * row["grad/global_preclip_log10"] == pytest.approx(math.log10(total), abs=1e-5)
        clip = min(1.0, 1.0 / 10 ** row["grad/global_preclip_log10"])
        assert row["grad/clip_factor"] == pytest.approx(clip, rel=1e-5)
        assert all(0 <= row[f"act/rank/{end}"] <= 1 + 1e-6 for end in ENDS)


def test_the_rate_is_that_of_the_last_step_done(trained):
    logged = rows(trained[1])
    assert logged[5]["optim/lr"] == pytest.approx(1e-2 * 5 / 6, rel=1e-6)  # step 4 of a warm-up of 5
    for step in range(10, 41, 5):
        done = (step - 1 - 5) / 35
        expected = 1e-3 + 9e-3 * (1 + math.cos(math.pi * done)) / 2
        assert logged[step]["optim/lr"] == pytest.approx(expected, rel=1e-5)


def test_twins_have_the_same_first_loss_only_where_they_agree(trained):
    """delta without the skip, measured in `with`, is delta of `without_skip` at the same initial weights."""
    _, run = trained
    with_, without = rows(run)[0], rows(run.parent / "without_skip")[0]
    for layer in ENDS:
        tag = f"delta_without/norm_log10/{layer}"
        assert with_[tag] == pytest.approx(without[f"delta/norm_log10/{layer}"], abs=1e-5)
    assert with_["loss/val"] != without["loss/val"]
