"""`deltaflow train --dry-run`: what it announces is what the training then does, and it leaves no trace."""

import itertools
import re
from collections import Counter

import pytest

from runs import NotedPrograms, bytes_needed, contents, group_runs, killed_at
from train.cli import main
from train.config.load import load
from train.device.signals import Stop
from train.log.console import Console
from train.run.dry_run import dry_run

pytestmark = pytest.mark.usefixtures("shared_programs")


@pytest.fixture
def config(tmp_path, monkeypatch, corpus):
    """A config of two groups, one of them of two variants, with an instrument and moving averages."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "dry.yaml"
    path.write_text(
        f"""
name: dry
model: {{layers: 2, width: 16, heads: 2}}
data: {{path: {corpus}, context: 8, batch: 4}}
optimizer: {{ema: 0.9, warmup: 2}}
train: {{steps: 22, eval_every: 6, eval_batches: 2, checkpoint_every: 6, steps_per_call: 3, unroll: 1}}
watch: {{every: 6, instruments: {{attention: 6}}}}
variants: {{with: {{}}, bare: {{model.residual: none}}, post: {{model.residual: post_ln}}}}
""",
        encoding="utf-8",
    )
    return path


@pytest.mark.slow
@pytest.mark.parametrize(
    ("killed", "group"),
    [(None, "auto"), (None, "vmap"), (15, "auto")],
)
def test_the_calls_that_are_timed_are_those_of_the_training(config, capsys, killed, group):
    if killed:
        killed_at(killed, config)
    clock = itertools.count(0.0).__next__  # each call takes a second
    dry_run(load(config, [f"train.group={group}"]), Console(), Stop(), clock=clock)
    announced, out = Counter(), capsys.readouterr().out
    for seconds, what in re.findall(r"(\d+)s (to train|to evaluate|for instruments)", out):
        announced[what] += int(seconds)
    calls = Counter()
    for run in group_runs(config, f"train.group={group}", programs=NotedPrograms):
        run.run()
        assert isinstance(run.programs, NotedPrograms)
        for name, variants in run.programs.events:
            calls[name] += variants
    assert announced == {
        "to train": calls["dispatch"],
        "to evaluate": calls["evaluate"],
        "for instruments": calls["instrument"],
    }
    whole = {"auto": 3 * 8, "vmap": 2 * 8}[group]  # dispatches
    assert calls["dispatch"] == whole if killed is None else 0 < calls["dispatch"] < whole


@pytest.mark.slow
def test_it_names_size_work_and_time_of_each_group_and_writes_nothing(config, tmp_path, capsys):
    before = contents(tmp_path)
    assert main(["train", str(config), "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert contents(tmp_path) == before and not (tmp_path / "runs").exists()
    one, other = out.split("group of 2\n")[1].split("variant\n")
    count = 24 * 16 + 8 * 16 + 2 * (4 * 16 * 16 + 2 * 16 * 64 + 2 * 16) + 16  # embed, positions, blocks, norm_f
    for block, names, variants in ((one, "with, bare (called in turn)", 2), (other, "post", 1)):
        rows = dict(line.strip().split("  ", 1) for line in block.splitlines() if line.startswith("  "))
        rows = {key: value.strip() for key, value in rows.items()}
        assert rows["variants"] == names and rows["run directory"] == "runs/dry, from step 0"
        assert rows["parameters"].startswith(f"{count if names != 'post' else count - 16:,} (float32)")
        assert rows["memory"].startswith("estimated ") and rows["in all"].endswith(
            f" FLOP, {variants * 22 * 32:,} tokens"
        )
        assert " to compile, " in rows["expected time"] and " for instruments" in rows["expected time"]
    assert f"{3 * 22 * 32:,} tokens\n" in other and out.endswith("dry run: nothing was written\n")


def test_it_says_where_a_run_goes_on_and_leaves_it_as_it_is(config, tmp_path, capsys):
    keys = ("variants={}", "watch={every: 0, instruments: {}}", "train.steps=18")
    killed_at(15, config, *keys)
    before = contents(tmp_path)
    main(["train", str(config), *keys, "--dry-run"])
    assert "runs/dry, goes on at step 12\n" in capsys.readouterr().out
    assert contents(tmp_path) == before
    main(["train", str(config), *keys])
    before = contents(tmp_path)
    assert main(["train", str(config), *keys, "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "main: finished before; nothing to do\n" in out and "expected time" not in out
    assert contents(tmp_path) == before


def test_it_refuses_what_the_training_would_refuse(config, device_memory, capsys, wording):
    device_memory(10**9)
    for arguments in (["--dry-run"], []):
        assert main(["train", str(config), "model.width=32768", "model.layers=10000", *arguments]) == 1
        wording(capsys.readouterr().err, volatile=r"[\d.e+]+(?= [kMGT]?B)")


@pytest.mark.slow
def test_a_grid_that_does_not_fit_is_announced_and_planned_in_waves(config, device_memory, capsys):
    keys = ["train.group=vmap", "variants={with: {}, bare: {model.residual: none}}"]
    assert main(["train", str(config), "--dry-run", *keys]) == 0
    free = int(0.7 * bytes_needed(capsys.readouterr().out))
    device_memory(free)
    for command, shown in ((["train", "--dry-run"], ["with", "bare"]), (["plan"], ["with"])):
        assert main([command[0], str(config), *command[1:], *keys]) == 0
        out = capsys.readouterr().out
        assert out.count("2 variants do not fit in memory; they train in 2 waves of 1\n") == 1
        assert re.findall(r"(?m)^  variants +(\S+)$", out) == shown


@pytest.mark.slow
def test_the_time_has_the_range_of_the_timed_calls(config, capsys):
    """0.3 s in the median, half of it at best, three times as much at worst; of 12,000 dispatches."""
    clock = itertools.accumulate(itertools.cycle([0, 0.3, 0, 0.15, 0, 0.9, 0, 0.3, 0, 0.3]))
    keys = ["variants={}", "watch={every: 0, instruments: {}}", "train={steps: 36000, eval_every: 36000}"]
    dry_run(load(config, keys), Console(), Stop(), clock=clock.__next__)
    assert (
        "expected time  1h 00m (30m 01s to 3h 00m): 0s to compile, 1h 00m to train, 1s to " in capsys.readouterr().out
    )
