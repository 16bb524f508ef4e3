"""Backends of a run's log in addition to metrics.jsonl: TensorBoard's event files, Weights & Biases, a CSV file."""

import csv
import importlib.util
import json
import secrets
import zlib
from collections.abc import Iterator, Mapping, Sequence
from io import TextIOWrapper
from pathlib import Path
from typing import Any

import numpy as np

from data.files import replacing

from ..config.load import Variant, flatten, to_yaml
from ..config.schema import LogConfig
from ..config.variants import short
from ..config.yaml import unquoted
from ..errors import UserError
from .append import EVENTS_PREFIX, AppendFile, event_file_header, event_file_name, event_record
from .charts_layout import Layout

TAG_SETS = 16  # sets of tags whose Summary is kept for reuse: building one takes six times as long as filling it in
# Keys that fill up TensorBoard's HParams to _LEAST columns where fewer differ. With more of them, the final losses are
# beyond the edge of a window of 1280 pixels.
COLUMNS = ("optimizer.lr", "model.layers", "model.width", "seed")
_LEAST = 3
_MOST = 3  # names, and values, in a cell of the table of differences


class Backend:
    """A destination of one variant's log. Each method does nothing by default and may raise; training goes on.

    Args:
      directory: the variant's run directory; the name of the folder around it is that of the experiment.
      first_step: the step training starts or resumes at; what an earlier process logged from there on is replaced.
    """

    lost = 0  # records that were dropped

    def __init__(self, directory: Path, first_step: int) -> None: ...

    def config(self, step: int, variant: Variant) -> None: ...

    def layout(self, step: int, categories: Layout) -> None: ...

    def log(self, step: int, scalars: Mapping[str, float]) -> None: ...

    def image(self, tag: str, step: int, rgb: np.ndarray, title: str, caption: str) -> None: ...

    def histogram(self, tag: str, step: int, edges: Sequence[float], counts: Sequence[float]) -> None: ...

    def text(self, tag: str, step: int, markdown: str) -> None: ...

    def flush(self, sync: bool) -> None:
        """Writes what is pending, with `sync` down to the disk."""

    def finish(self, step: int, metrics: Mapping[str, float]) -> None:
        """Takes the final metrics of a run that has come to its end; `close` follows."""

    def close(self) -> None: ...


class TensorBoard(Backend):
    """An event file. Records reach it at `flush` and wait in memory while the disk refuses them."""

    def __init__(self, directory: Path, first_step: int, suffix: str = "") -> None:
        from tensorboardX.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]

        self._summary = Summary
        self._summaries: dict[tuple[str, ...], Any] = {}  # by tags
        self._hparams: dict[str, str | float | bool] = {}
        self._columns: dict[str, bool] = {}  # keys of HParams; True: it differs, and comes first
        self._events = AppendFile(directory / f"{event_file_name()}{suffix}")
        self._events.append(event_file_header(first_step))

    @property
    def lost(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self._events.lost

    def config(self, step: int, variant: Variant) -> None:
        """Logs the config as text, and the differences to the other variants; the columns of HParams at `finish`.

        The Text tab sorts by name: `finding` (see `add_text`), `verdict`, `versus`, `yaml`.
        """
        fill = [key for key in COLUMNS if key not in variant.differences]
        self._columns = dict.fromkeys(variant.differences, True)
        self._columns |= dict.fromkeys(fill[: max(0, _LEAST - len(self._columns))], False)
        for key, value in flatten(variant.config).items():  # also those that differ in another experiment of the folder
            if isinstance(value, bool | str):
                self._hparams[key] = value
            else:
                self._hparams[key] = float(value) if isinstance(value, int | float) else json.dumps(value)
        if variant.differences:
            self.text("versus", step, _versus(variant))
        # An indented block, not a fenced one: nothing in the YAML can end it.
        lines = to_yaml(variant.config).splitlines()
        self.text("yaml", step, "".join(f"    {line}\n" for line in lines))

    def layout(self, step: int, categories: Layout) -> None:
        """Logs the layout of Custom Scalars. (tensorboardX's own function knows no closed categories.)"""
        from tensorboardX.proto import layout_pb2, summary_pb2, tensor_pb2

        pb: Any = layout_pb2
        layout = pb.Layout(
            category=[
                pb.Category(
                    title=title,
                    closed=index > 0,
                    chart=[
                        pb.Chart(title=name, multiline=pb.MultilineChartContent(tag=[pattern]))
                        for name, pattern in charts.items()
                    ],
                )
                for index, (title, charts) in enumerate(categories.items())
            ]
        )
        plugin: Any = summary_pb2.SummaryMetadata.PluginData(plugin_name="custom_scalars")  # pyright: ignore[reportAttributeAccessIssue]
        tensor: Any = tensor_pb2.TensorProto(dtype="DT_STRING", string_val=[layout.SerializeToString()])  # pyright: ignore[reportAttributeAccessIssue]
        metadata: Any = summary_pb2.SummaryMetadata(plugin_data=plugin)  # pyright: ignore[reportAttributeAccessIssue]
        value = self._summary.Value(tag="custom_scalars__config__", tensor=tensor, metadata=metadata)
        self._event(step, self._summary(value=[value]))

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        """Logs the scalars of one step as one event."""
        tags = tuple(scalars)
        if tags not in self._summaries:
            if len(self._summaries) == TAG_SETS:
                self._summaries.clear()
            self._summaries[tags] = self._summary(value=[self._summary.Value(tag=tag) for tag in tags])
        summary = self._summaries[tags]
        for entry, x in zip(summary.value, scalars.values(), strict=True):
            entry.simple_value = x
        self._event(step, summary)

    def image(self, tag: str, step: int, rgb: np.ndarray, title: str, caption: str) -> None:
        from tensorboardX.summary import image

        summary = image(tag, rgb, dataformats="HWC")
        metadata = summary.value[0].metadata
        metadata.plugin_data.plugin_name, metadata.display_name, metadata.summary_description = "images", title, caption
        self._event(step, summary)

    def histogram(self, tag: str, step: int, edges: Sequence[float], counts: Sequence[float]) -> None:
        from tensorboardX.summary import histogram_raw

        middles = [(low + high) / 2 for low, high in zip(edges[:-1], edges[1:], strict=True)]
        total = sum(count * x for count, x in zip(counts, middles, strict=True))
        squares = sum(count * x * x for count, x in zip(counts, middles, strict=True))
        limits, number = list(edges[1:]), float(sum(counts))
        self._event(step, histogram_raw(tag, edges[0], edges[-1], number, total, squares, limits, list(counts)))

    def text(self, tag: str, step: int, markdown: str) -> None:
        from tensorboardX.summary import text

        summary = text(tag, markdown)
        summary.value[0].tag = tag  # without tensorboardX's suffix /text_summary
        self._event(step, summary)

    def flush(self, sync: bool) -> None:
        self._events.flush(sync)

    def finish(self, step: int, metrics: Mapping[str, float]) -> None:
        """Writes the columns of HParams into this run's own file."""
        from tensorboardX.proto import plugin_hparams_pb2
        from tensorboardX.summary import hparams

        experiment, *session = hparams(self._hparams, dict(metrics))
        plugin: Any = experiment.value[0].metadata.plugin_data
        data: Any = plugin_hparams_pb2.HParamsPluginData.FromString(plugin.content)  # pyright: ignore[reportAttributeAccessIssue]
        infos = {info.name: info for info in data.experiment.hparam_infos}
        del data.experiment.hparam_infos[:]
        for key, differs in self._columns.items():
            info = data.experiment.hparam_infos.add(name=key, display_name=short(key), type=infos[key].type)
            if differs:
                info.MergeFromString(b"\x38\x01")  # `differs: true`, a field that tensorboardX does not know
        plugin.content = data.SerializeToString()
        for summary in (experiment, *session):
            self._event(step, summary)

    def close(self) -> None:
        self._events.close()

    def _event(self, step: int, summary: Any) -> None:
        self._events.append(event_record(step=step, summary=summary))


class Wandb(Backend):
    """A run of Weights & Biases, in the project of the experiment's name; online or not as wandb's own settings say.

    A resumed run goes on under its id, and steps that wandb has already are not sent again.
    """

    def __init__(self, directory: Path, first_step: int) -> None:
        wandb = importlib.import_module("wandb")
        path = directory / "wandb" / "id"
        if not (first_step and path.exists()):
            with replacing(path) as file:
                file.write(secrets.token_hex(8).encode())
        self._run = wandb.init(
            project=directory.resolve().parent.name,
            name=directory.resolve().name,
            id=path.read_text(encoding="utf-8"),
            resume="allow",
            dir=directory,
            reinit="create_new",  # variants train side by side
            settings=wandb.Settings(console="off", silent=True),
        )

    def config(self, step: int, variant: Variant) -> None:
        self._run.config.update(flatten(variant.config), allow_val_change=True)

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        if step >= self._run.step:
            self._run.log(dict(scalars), step=step)

    def finish(self, step: int, metrics: Mapping[str, float]) -> None:
        self._run.summary.update(dict(metrics))

    def close(self) -> None:
        self._run.finish()


class Csv(Backend):
    """metrics.csv: metrics.jsonl as a table with a column a tag, written when the run ends or is stopped."""

    def __init__(self, directory: Path, first_step: int) -> None:
        self._directory = directory

    def close(self) -> None:
        def rows() -> Iterator[dict[str, Any]]:
            with open(self._directory / "metrics.jsonl", encoding="utf-8") as file:
                for row in map(json.loads, file):
                    yield row | dict.fromkeys(row.pop("nonfinite", []), "nan")

        columns = list(dict.fromkeys(tag for row in rows() for tag in row))  # tags may begin late
        with replacing(self._directory / "metrics.csv") as file:
            text = TextIOWrapper(file, "utf-8", newline="")
            table = csv.DictWriter(text, columns)
            table.writeheader()
            table.writerows(rows())
            text.detach()  # which flushes, and leaves the file open


BACKENDS: dict[str, type[Backend]] = {"tensorboard": TensorBoard, "wandb": Wandb, "csv": Csv}  # by key of `log:`


def check_installed(config: LogConfig) -> None:
    """Raises UserError when a backend is asked for whose package is missing."""
    if config.wandb and importlib.util.find_spec("wandb") is None:
        raise UserError("log.wandb: the package wandb is not installed; pip install 'deltaflow[wandb]'")


def add_text(directory: Path, step: int, tag: str, markdown: str) -> None:
    """Adds a text to the Text tab of a run that is closed, unless a run of the experiment has it. Raises OSError."""
    suffix = f".{tag}_{zlib.crc32(markdown.encode()):08x}"
    if any(file.stat().st_size for file in directory.parent.glob(f"*/{EVENTS_PREFIX}*{suffix}")):
        return
    run = TensorBoard(directory, step + 1, suffix)  # which replaces nothing
    run.text(tag, step, markdown)
    run.flush(sync=False)
    run.close()


def _versus(variant: Variant) -> str:
    """Returns a markdown table of the keys that differ between variants."""

    def some(items: Sequence[str], mark: str) -> str:
        more = f" and {len(items) - _MOST} more" if len(items) > _MOST else ""
        return mark.join(items[:_MOST]) + more

    lines = [f"| key | {variant.name} | other variants |", "|---|---|---|"]
    for key, values in variant.differences.items():
        others: dict[str, list[str]] = {}
        for name, value in values.items():
            if value != values[variant.name]:
                others.setdefault(unquoted(value), []).append(name)
        cells = [f"{value} ({some(names, ', ')})" for value, names in others.items()]
        lines.append(f"| {key} | **{unquoted(values[variant.name])}** | {some(cells, '; ')} |")
    return "\n".join(lines)
