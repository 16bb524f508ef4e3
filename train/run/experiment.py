"""A whole experiment: its data, its device, its groups one after the other, and what came out."""

import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.custom import imported
from data.open import open_source
from data.source import DataSpec, Source
from model.network import Network

from ..config.fields import did_you_mean
from ..config.load import ConfigError, Experiment, Variant
from ..config.schema import RunConfig
from ..config.warnings import warnings_for
from ..core.custom import FUNCTIONS
from ..core.optimizer import check
from ..core.state import hparams_of
from ..core.task import network_of
from ..device import platform as platforms
from ..device.platform import Platform
from ..device.programs import Group, assumed_step_seconds, grouped, steps_per_call
from ..device.signals import Stop, Stopped
from ..errors import UserError
from ..log.console import Console
from ..report.read import read_run
from ..report.tables import closing_table, verdict_lines
from ..store.rundir import directory_of
from . import report_files
from .loop import GroupRun
from .resume import abreast, standing, steps_per_call_of


@dataclass(frozen=True)
class Outcome:
    """What training ended with."""

    summaries: list[dict[str, Any]]
    unmet: list[str]  # promises of `expect:` that did not come true, a line each
    stopped: list[str]  # variants that a step that is not finite has stopped


def open_all(variants: Sequence[Variant]) -> dict[str, Source]:
    """The data of every variant, each corpus read once. No JAX yet. Raises DataError."""
    sources: dict[str, Source] = {}
    for variant in variants:
        key = data_key(variant.config)
        if key not in sources:
            with variant.placing():
                sources[key] = open_source(variant.config.data)
    return sources


def data_key(config: RunConfig) -> str:
    """Equal for variants that read the same tokens: the batch size and the seed draw from them, and no more."""
    return config.data.model_copy(update={"batch": 1, "seed": 0}).model_dump_json()


def device_of(experiment: Experiment) -> Platform:
    """The device that all variants name, with JAX started on it. Raises UserError when there is none."""
    first = experiment.variants[0]
    with first.placing():
        return platforms.select(first.config.train)


def build_group(variants: Sequence[Variant], form: DataSpec, platform: Platform) -> Group:
    """Raises ConfigError when the data is not for the config's task, or of its optimizer; UserError, DataError."""
    config = variants[0].config
    dtype, unroll = platforms.compute_dtype(config.train, platform), platforms.unroll(config, platform)
    try:
        network = network_of(config, form, dtype, unroll)
    except UserError as error:
        raise ConfigError([variants[0].problem(str(error))]) from None
    with variants[0].placing():
        if form.context != config.data.context:
            message = f"data.context: data.kind {config.data.kind} has windows of {form.context} tokens; set that"
            raise UserError(message)
        if ":" in config.optimizer.name:
            FUNCTIONS[config.optimizer.name] = imported("optimizer.name", config.optimizer.name)
    if config.optimizer.patterned:
        for variant in variants:
            _check_optimizer(variant, network)
    vmapped = len(variants) > 1 and platforms.grouped_by(config.train, platform) == "vmap"
    return Group(tuple(variants), network, vmapped)


def _check_optimizer(variant: Variant, network: Network) -> None:
    hp = hparams_of(variant.config, network.param_dtype).optimizer
    try:
        check(variant.config.optimizer, hp, network.shapes())
    except UserError as error:
        raise ConfigError([variant.problem(str(error))]) from None


def train(experiment: Experiment, console: Console, stop: Stop, allow_data_change: bool = False) -> Outcome:
    """Trains every variant and prints the closing table. allow_data_change: runs that were trained on other data go
    on all the same, where it has the same tokens. Raises DataError, UserError, ConfigError, Stopped."""
    try:
        return _train(experiment, console, stop, allow_data_change)
    except Stopped:
        console.note(standing(experiment.variants))
        raise


def _train(experiment: Experiment, console: Console, stop: Stop, allow_data_change: bool) -> Outcome:
    stop.doing = "the reading of data"
    sources = open_all(experiment.variants)
    stop.doing = "the start of JAX"
    platform = device_of(experiment)
    _start_block(experiment, sources, platform, console)
    summaries: dict[str, dict[str, Any]] = {}
    groups = []  # all of them first: what is wrong with one is said before another has trained
    for members in grouped(experiment.variants):
        source = sources[data_key(members[0].config)]
        groups += [(source, build_group(part, source.form, platform)) for part in abreast(members)]
    began = time.perf_counter()
    for source, group in groups:
        if stop.signal is not None:
            break
        stop.doing = "set-up and compilation"
        guess = steps_per_call(group.config, assumed_step_seconds(group, group.config.data.batch, platform.kind))
        K = steps_per_call_of(directory_of(group.variants[0]), guess)
        run = GroupRun(group, source, platform, console, stop, K, time.perf_counter() - began, allow_data_change)
        for summary in run.run():
            summaries[summary["variant"]] = summary
    ordered = [summaries[v.name] for v in experiment.variants if v.name in summaries]
    console.table(f"{experiment.name}: results", *closing_table(ordered))
    for summary in ordered:
        if (step := summary["first_nonfinite_step"]) is not None:
            console.warn(f"{summary['variant']}: {_after(summary)}; the first that was not finite was step {step}")
        if summary["verdict"] is not None:
            for line in verdict_lines(summary["variant"], summary["verdict"]):
                console.note(line)
    root = directory_of(experiment.variants[0]).parent
    if stop.signal is not None:
        console.note(standing(experiment.variants))
        return Outcome(ordered, [], [])
    console.note(f"compare in TensorBoard: deltaflow tensorboard {shlex.quote(str(root))}")
    stop.doing = "the report, with all training done"
    report_files.write_report(root, console)
    logged = {v.name: _last_logged(directory_of(v)) for v in experiment.variants if v.name in experiment.expect}
    stopped = [summary["variant"] for summary in ordered if summary["exit_reason"] == "nonfinite"]
    return Outcome(ordered, unmet(experiment.expect, ordered, logged), stopped)


def _after(summary: Mapping[str, Any]) -> str:
    """What `train.on_nonfinite` has done."""
    if summary["exit_reason"] == "nonfinite":
        return f"stopped by a step that is not finite, step {summary['steps']}"
    if "skipped_steps" in summary:
        return f"{summary['skipped_steps']} updates were left out"
    return f"rewound {len(summary['rewinds'])} times"


def _start_block(experiment: Experiment, sources: Mapping[str, Source], platform: Platform, console: Console):
    versions = ", ".join(f"{name} {number}" for name, number in platforms.versions().items())
    rows = [("device", platform.label), ("versions", versions)]
    rows += [("data", f"{source.source}: {source.details}") for source in sources.values()]
    rows.append(("variants", ", ".join(variant.name for variant in experiment.variants)))
    console.block(f"deltaflow {experiment.name}", rows)
    if platform.count > 1:
        console.warn(f"one of {platform.count} devices is used: {platform.device}")
    for line in warnings_for(experiment.variants):
        console.warn(line)


_SUMMARY_KEYS = {
    "loss/train": "loss_train",
    "loss/val": "loss_val",
    "loss/val_ema": "loss_val_ema",
    "accuracy/val": "accuracy_val",
}


def _last_logged(directory: Path) -> dict[str, float]:
    """The last value of every tag of a run."""
    return {tag: float(values[-1]) for tag, (_, values) in read_run(directory).steps.items()}


def unmet(
    expect: Mapping[str, Mapping[str, Any]],
    summaries: Sequence[Mapping[str, Any]],
    logged: Mapping[str, Mapping[str, float]],
) -> list[str]:
    """One line for each promise of the config that a run broke; `expect` is by full name (train/config/expand.py).

    A promise is about a figure of summary.json or of its verdict, or else about the last value of a logged tag.
    """
    lines = []
    for name, promises in expect.items():
        for summary in summaries:
            if summary["variant"] != name:
                continue
            for tag, wanted in promises.items():
                got = _measured(summary, tag)
                last = logged.get(name, {})
                if got is None and summary.get("exit_reason") != "nonfinite":  # its last figures are not of its end
                    got = last.get(tag)
                if got is None and tag not in {*summary, *_SUMMARY_KEYS, *last}:
                    lines.append(f"{name}: {tag}: was never logged{did_you_mean(tag, {*last, *_SUMMARY_KEYS})}")
                    continue
                if isinstance(wanted, str):
                    good = got == wanted
                else:
                    good = isinstance(got, int | float) and wanted[0] <= got <= wanted[1]
                if not good:
                    what = wanted if isinstance(wanted, str) else f"between {wanted[0]} and {wanted[1]}"
                    lines.append(f"{summary['variant']}: {tag}: expected {what}, got {got}")
    return lines


def _measured(summary: Mapping[str, Any], tag: str) -> Any:
    verdict = summary["verdict"] or {}
    if tag == "verdict":
        return verdict.get("state")
    return verdict[tag] if tag in verdict else summary.get(_SUMMARY_KEYS.get(tag, tag))
