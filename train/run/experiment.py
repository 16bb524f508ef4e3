"""An experiment: its data, its device, and its groups trained one after the other."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from data.custom import imported
from data.source import DataSpec, Source, open_source

from ..config.checks import warnings_for
from ..config.load import ConfigError, Experiment, Variant
from ..config.schema import MeshConfig, RunConfig
from ..core.optimizer import FUNCTIONS, check
from ..core.state import hparams_of, network_of
from ..device import hosts
from ..device import platform as platforms
from ..device.mesh import mesh_of
from ..device.platform import Platform
from ..device.programs import VariantGroup, grouped
from ..device.signals import Stop
from ..errors import UserError
from ..log.backends import add_text, check_installed
from ..log.console import Console
from ..report.finding import finding
from ..report.groups import seedless
from ..report.read import read_run
from ..report.tables import closing_table, markdown_text, verdict_lines
from ..store.rundir import directory_of
from ..text import command
from . import summary as summaries
from .loop import GroupRun
from .setup import GroupSetup
from .start import finished_run, resumable_parts, resume_points


@dataclass(frozen=True)
class Outcome:
    """The result of a training: a summary a variant, the promises of `expect:` that were broken (a line each), and the
    variants that a step that is not finite has stopped."""

    summaries: list[dict[str, Any]]
    unmet: list[str]
    stopped: list[str]


def open_all(variants: Sequence[Variant]) -> dict[str, Source]:
    """Returns the data of every variant by `data_key`, each corpus read once. Starts no JAX. Raises UserError."""
    sources: dict[str, Source] = {}
    for variant in variants:
        key = data_key(variant.config)
        if key not in sources:
            with variant.placing():
                sources[key] = open_source(variant.config.data)
    return sources


def data_key(config: RunConfig) -> str:
    """Returns a key that variants share if they read the same tokens; batch size and seed only draw from them."""
    return config.data.model_copy(update={"batch": 1, "seed": 0}).model_dump_json()


def device_of(experiment: Experiment, topology: str | None = None) -> Platform:
    """Starts JAX and returns the device that all variants name, or one to compile for. Raises UserError."""
    first = experiment.variants[0]
    with first.placing():
        return platforms.select(first.config.train, topology)


def build_group(
    variants: Sequence[Variant], spec: DataSpec, platform: Platform, one_device: bool = False
) -> VariantGroup:
    """Returns variants of one structure with their network and mesh; `one_device`: without the config's mesh.

    Raises ConfigError when the data or the optimizer does not fit the config; UserError for what users bring along.
    """
    config = variants[0].config
    with variants[0].placing():
        check_installed(config.log)
    dtype, unroll = platforms.compute_dtype(config.train, platform), platforms.unroll(config, platform)
    try:
        network = network_of(config, spec, dtype, unroll)
    except UserError as error:
        raise ConfigError([variants[0].problem(str(error))]) from None
    with variants[0].placing():
        if spec.context != config.data.context:
            message = f"data.context: data.kind {config.data.kind} has windows of {spec.context} tokens; set that"
            raise UserError(message)
        if ":" in config.optimizer.name:
            FUNCTIONS[config.optimizer.name] = imported("optimizer.name", config.optimizer.name)
    if config.optimizer.patterned:
        for variant in variants:
            numbers = hparams_of(variant.config, network.param_dtype).optimizer
            try:
                check(variant.config.optimizer, numbers, network.shapes())
            except UserError as error:
                raise ConfigError([variant.problem(str(error))]) from None
    vmapped = not one_device and len(variants) > 1 and platforms.grouped_by(config, platform) == "vmap"
    if one_device:
        mesh = mesh_of(MeshConfig(), 1, 1, [platform.device])
    else:
        with variants[0].placing():
            rows = config.data.batch // config.optimizer.accumulate
            mesh = mesh_of(config.mesh, rows, len(variants) if vmapped else 1, platform.devices)
    if mesh.size == 1:
        network = replace(network, fused=platforms.fused_attention(config.train, platform))
    return VariantGroup(tuple(variants), network, vmapped, mesh)


def prepared(
    experiment: Experiment, console: Console, stop: Stop
) -> tuple[Experiment, Platform, list[tuple[Source, VariantGroup]]]:
    """Prints what the experiment runs on; returns it with its device, and all its groups with their data.

    In a process other than the first its run directories are a copy. All groups, so that an error in one is reported
    before another has trained. Raises UserError, ConfigError, DataError.
    """
    stop.doing = "the reading of data"
    sources = open_all(experiment.variants)
    stop.doing = "the start of JAX"
    platform = device_of(experiment)
    folder = directory_of(experiment.variants[0]).parent
    if (copy := hosts.broadcast_folder(folder)) != folder:
        moved = {"runs_dir": str(copy.parent)}
        variants = (replace(each, config=each.config.model_copy(update=moved)) for each in experiment.variants)
        experiment = replace(experiment, variants=tuple(variants))
    show_start(experiment, sources, platform, console)
    groups = []
    for members in grouped(experiment.variants):
        source = sources[data_key(members[0].config)]
        groups += [(source, build_group(part, source.spec, platform)) for part in resumable_parts(members)]
    if (used := max(group.mesh.size for _, group in groups)) < (count := len(platform.devices)):
        console.warn(f"devices: {used} of {count} in use; more do not divide data.batch, or mesh: asks for no more")
    return experiment, platform, groups


def train(
    experiment: Experiment,
    console: Console,
    stop: Stop,
    allow_data_change: bool = False,
    clock: Callable[[], float] = time.perf_counter,
) -> Outcome:
    """Trains every variant; prints results, verdicts, broken promises, the finding, and where the report is.

    Args:
        allow_data_change: runs that were trained on other data go on all the same, if it has the same tokens.

    Raises UserError, ConfigError, DataError, and Stopped when a signal comes where nothing is to be saved.
    """
    try:
        experiment, platform, groups = prepared(experiment, console, stop)
        console.plan([variant.name for _, group in groups for variant in group.variants])
        finished = {v.name for _, group in groups if finished_run(group.variants[0]) for v in group.variants}
        ended: dict[str, dict[str, Any]] = {}
        began = clock()
        while groups:
            (source, group), *groups = groups
            if hosts.agreed_stop(stop):
                break
            stop.doing = "set-up and compilation"
            waited_s = clock() - began
            later = [group for _, group in groups if group.variants[0].name not in finished]
            setup = GroupSetup(group, source, platform, console, allow_data_change)
            run = GroupRun(setup, stop, waited_s, later, experiment.command, clock)
            ended |= {summary["variant"]: summary for summary in run.run()}
            groups = setup.waves + groups
        console.close()
        ordered = [ended[variant.name] for variant in experiment.variants if variant.name in ended]
        show_results(experiment.name, ordered, console)
        if stop.signal is not None:
            console.note(resume_points(experiment.variants))
            return Outcome(ordered, [], [])
        root = directory_of(experiment.variants[0]).parent
        stop.doing = "the report, with all training done"
        page = summaries.write_report(root, console)
        stopped = [summary["variant"] for summary in ordered if summary["exit_reason"] == "nonfinite"]
        # From the logs, which are closed: a run that was resumed, or finished before, has its figures nowhere else.
        promised = [variant for variant in experiment.variants if variant.name in experiment.expect]
        logged = {variant.name: read_run(directory_of(variant)) for variant in promised}
        early = [summary for summary in ordered if summary["exit_reason"] == "verdict"]
        for name in (summary["variant"] for summary in early if summary["variant"] in logged):
            console.note(f"expect: {name}: not checked, since train.stop_when ended it")
        unmet = summaries.unmet(experiment.expect, [each for each in ordered if each not in early], logged)
        for line in unmet:
            console.warn(f"expect: {line}")
        by_name: dict[str, list[dict[str, Any]]] = {}
        for summary in ordered:
            by_name.setdefault(seedless(summary["variant"]), []).append(summary)
        console.finding(sentences := finding(list(by_name.items())))
        if page is not None:
            console.note(f"report: {page.absolute().as_uri()}")
        if experiment.variants[0].config.log.tensorboard:
            if sentences:
                first = next((each for each in ordered if each["variant"] not in finished), ordered[0])
                markdown = "\n\n".join(map(markdown_text, sentences))
                try:
                    add_text(root / first["variant"], first["steps"], "finding", markdown)
                except OSError as error:
                    console.warn(f"no finding in TensorBoard: {error.strerror}")
            console.command(command("tensorboard", root), "TensorBoard: ")
        return Outcome(ordered, unmet, stopped)
    except KeyboardInterrupt:  # also Stopped
        console.close()
        console.note(resume_points(experiment.variants))
        raise


def show_start(experiment: Experiment, sources: Mapping[str, Source], platform: Platform, console: Console) -> None:
    """Prints device, versions, data and variants, and the warnings about the config."""
    versions = ", ".join(f"{name} {number}" for name, number in platforms.versions().items())
    rows = [("device", platform.label), ("versions", versions)]
    rows += [("data", f"{source.name}: {source.details}") for source in sources.values()]
    rows.append(("variants", ", ".join(variant.name for variant in experiment.variants)))
    console.block(f"deltaflow {experiment.name}", rows)
    if platforms.has_fast_math():
        console.warn("XLA_FLAGS: fast math changes results and hides steps that are not finite; leave that flag out")
    for line in warnings_for(experiment.variants):
        console.warn(line)


def show_results(name: str, ended: Sequence[Mapping[str, Any]], console: Console) -> None:
    """Prints the closing table, steps that were not finite, and the verdicts."""
    console.table(f"{name}: results", *closing_table(ended))
    for summary in ended:
        if (step := summary["first_nonfinite_step"]) is not None:
            skipped = summary.get("skipped_steps")
            after = "1 update was left out" if skipped == 1 else f"{skipped} updates were left out"
            if summary["exit_reason"] == "nonfinite":
                after = f"stopped by a step that is not finite, step {summary['steps']}"
            console.warn(f"{summary['variant']}: {after}; the first that was not finite was step {step}")
        if summary["verdict"] is not None:
            for line in verdict_lines(summary["variant"], summary["verdict"]):
                console.note(line)
