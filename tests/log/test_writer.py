"""The tracker's files, read back by TensorBoard's own reader; failures of the disk must not reach training."""

import errno
import json
import math
import os
import resource
from contextlib import closing, contextmanager
from io import BytesIO

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams import metadata as hparams_metadata

from train.config.load import flatten, from_mapping, to_yaml
from train.errors import UserError
from train.log import backends
from train.log.append import MAX_PENDING, AppendFile
from train.log.backends import TAG_SETS
from train.log.charts_layout import chart_layout
from train.log.writer import Tracker


def read(directory):
    events = EventAccumulator(str(directory), size_guidance={"scalars": 0, "images": 0, "tensors": 0})
    return events.Reload()


def points(directory, tag):
    return [(event.step, event.value) for event in read(directory).Scalars(tag)]


def rows(directory):
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def test_what_is_no_file_is_not_waited_for(tmp_path, wording):
    os.mkfifo(tmp_path / "metrics.jsonl")
    with wording.raises(UserError, tmp_path / "metrics.jsonl"):
        Tracker(tmp_path)


def test_scalars_are_one_event_a_step_and_one_line(tmp_path):
    with closing(Tracker(tmp_path)) as run:
        run.log(0, {"loss/train": 4.5, "gain/layer_000": 0.5, "loss/val": None})
        run.log(int(np.int64(10)), {"loss/train": float(np.float32(0.1))})
        assert run.drain()
    assert points(tmp_path, "loss/train") == [(0, 4.5), (10, pytest.approx(0.1))]
    assert points(tmp_path, "gain/layer_000") == [(0, 0.5)]
    assert read(tmp_path).Tags()["scalars"] == ["loss/train", "gain/layer_000"]
    assert rows(tmp_path) == [
        {"step": 0, "loss/train": 4.5, "gain/layer_000": 0.5, "loss/val": None},
        {"step": 10, "loss/train": float(np.float32(0.1))},
    ]


def test_rows_with_the_same_tags_and_with_others_keep_their_own_values(tmp_path):
    """An event is filled in again when the same tags come back, and there may be more sets of tags than are kept."""
    logged = {}
    with closing(Tracker(tmp_path)) as run:
        for step in range(3 * TAG_SETS):
            others = {f"tag_{i}": float(step + i) for i in range(1 + step // 2)}
            logged[step] = {"a": -float(step), "b": None if step % 3 else step / 4} | others
            run.log(step, logged[step])
    tags = {tag for row in logged.values() for tag in row}
    assert set(read(tmp_path).Tags()["scalars"]) == tags
    for tag in tags:
        expected = [(step, row[tag]) for step, row in logged.items() if row.get(tag) is not None]
        assert points(tmp_path, tag) == expected, tag
    assert rows(tmp_path) == [{"step": step} | row for step, row in logged.items()]


def test_values_that_are_not_finite(tmp_path):
    with closing(Tracker(tmp_path)) as run:
        run.log(3, {"a": math.nan, "b": -math.inf, "c": 1.0, "d": 1e300})
    assert "NaN" not in (tmp_path / "metrics.jsonl").read_text()
    assert rows(tmp_path) == [{"step": 3, "a": None, "b": None, "c": 1.0, "d": 1e300, "nonfinite": ["a", "b"]}]
    assert math.isnan(points(tmp_path, "a")[0][1])
    assert points(tmp_path, "b") == [(3, -math.inf)]
    assert points(tmp_path, "d") == [(3, math.inf)]  # TensorBoard holds float32


def test_resume_replaces_what_was_logged_from_first_step_on(tmp_path):
    with closing(Tracker(tmp_path)) as run:
        for step in range(5):
            run.log(step, {"loss": float(step)})
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step":1,"loss":')
    with closing(Tracker(tmp_path, first_step=3)) as run:
        run.log(3, {"loss": 30.0})
    expected = [(0, 0.0), (1, 1.0), (2, 2.0), (3, 30.0)]
    assert points(tmp_path, "loss") == expected
    assert [(row["step"], row["loss"]) for row in rows(tmp_path)] == expected


def test_a_fresh_start_replaces_everything(tmp_path):
    for loss in (1.0, 2.0):
        with closing(Tracker(tmp_path)) as run:
            run.log(0, {"loss": loss})
    assert points(tmp_path, "loss") == [(0, 2.0)]
    assert rows(tmp_path) == [{"step": 0, "loss": 2.0}]


def test_two_writers_at_once_have_two_files(tmp_path):
    with closing(Tracker(tmp_path)) as first, closing(Tracker(tmp_path)) as second:
        first.log(0, {"a": 1.0})
        second.log(0, {"b": 2.0})
    files = sorted(tmp_path.glob("events.out.tfevents.*"))
    assert [points(file, tag) for file, tag in zip(files, "ab", strict=True)] == [[(0, 1.0)], [(0, 2.0)]]


def texts(directory, tag):
    return [event.tensor_proto.string_val[0].decode() for event in read(directory).Tensors(tag)]


def test_texts_and_image(tmp_path, wording):
    rgb = np.zeros((4, 6, 3), np.uint8)
    rgb[1, 2] = (255, 128, 7)
    base = {"name": "a", "sweep": {"seed": [0, 1], "optimizer.lr": [0.1, 0.25]}}
    variant = from_mapping(base | {"variants": {"with": {}, "without": {"model.residual": "none"}}}).variants[1]
    with closing(Tracker(tmp_path)) as run:
        run.config(variant)
        run.text("verdict", 9, "healthy")
        run.image("picture", 7, rgb, "a/with: a title", "a caption")
        with wording.raises(ValueError, "image picture"):
            run.image("picture", 8, rgb.astype(float))
    events = read(tmp_path)
    assert sorted(events.Tags()["tensors"]) == [
        "verdict",
        "versus",
        "yaml",
    ]  # the order in which TensorBoard shows them
    assert texts(tmp_path, "yaml")[0].replace("\n    ", "\n")[4:] == to_yaml(variant.config)
    others = "(with,seed=0,lr=0.1, with,seed=1,lr=0.1, without,seed=0,lr=0.1 and 1 more)"
    table = texts(tmp_path, "versus")[0].splitlines()
    assert table[:2] == ["| key | with,seed=0,lr=0.25 | other variants |", "|---|---|---|"]
    assert table[-1] == f"| optimizer.lr | **0.25** | 0.1 {others} |"
    assert [row.split()[1] for row in table[2:]] == ["seed", "model.residual.rule", "optimizer.lr"]
    (image,) = events.Images("picture")
    assert (image.step, image.width, image.height) == (7, 6, 4)
    np.testing.assert_array_equal(np.asarray(Image.open(BytesIO(image.encoded_image_string))), rgb)
    metadata = events.SummaryMetadata("picture")
    assert (metadata.display_name, metadata.summary_description) == ("a/with: a title", "a caption")


@pytest.mark.parametrize("swept", [3, 1, 0])
def test_hparams_are_what_differs_in_at_least_three_columns_in_the_runs_own_file(tmp_path, swept):
    sweep = {"optimizer.clip": [None, 1.0], "optimizer.betas": [[0.9, 0.99], [0.9, 0.95]], "model.bias": [True, False]}
    sweep = dict(list(sweep.items())[:swept])
    run = Tracker(tmp_path)
    variant = from_mapping({"name": "a", "sweep": sweep}).variants[0]
    run.config(variant)
    run.log(5, {"loss/val": 2.0, "loss/train": 3.0})
    run.finish({"loss/val": 2.0, "loss/train": 2.5, "final": 1.0})
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]
    events = read(tmp_path)

    def content(tag):
        return events.SummaryMetadata(tag).plugin_data.content

    start = hparams_metadata.parse_session_start_info_plugin_data(content("_hparams_/session_start_info"))
    values = {key: getattr(value, value.WhichOneof("kind")) for key, value in start.hparams.items()}
    assert values.keys() == flatten(variant.config).keys()
    assert values["optimizer.betas"] == "[0.9, 0.99]" and values["optimizer.lr"] == 1e-3 and values["seed"] == 0.0
    assert swept == 0 or values["optimizer.clip"] == "null"
    assert values["model.bias"] is (swept == 3)
    experiment = hparams_metadata.parse_experiment_plugin_data(content("_hparams_/experiment"))
    columns = {(info.name, info.display_name, info.differs) for info in experiment.hparam_infos}
    fill = [("optimizer.lr", "lr", False), ("model.layers", "layers", False), ("model.width", "width", False)]
    names = {"optimizer.clip": "clip", "optimizer.betas": "betas", "model.bias": "model.bias"}  # a rule has a bias too
    assert columns == {*((key, names[key], True) for key in sweep), *fill[: 3 - swept]}
    assert [info.name.tag for info in experiment.metric_infos] == ["loss/val", "loss/train", "final"]
    end = hparams_metadata.parse_session_end_info_plugin_data(content("_hparams_/session_end_info"))
    assert end.status == 1  # STATUS_SUCCESS
    assert points(tmp_path, "loss/val") == [(5, 2.0)]  # not logged twice
    assert points(tmp_path, "loss/train") == [(5, 3.0), (5, 2.5)]
    assert points(tmp_path, "final") == [(5, 1.0)]


@pytest.mark.parametrize("matrices", [False, True])
def test_details_are_in_the_log_and_shown_on_request(tmp_path, matrices):
    with closing(Tracker(tmp_path, matrices=matrices)) as run:
        run.log(0, {"gain/layer_000": 1.0, "weight/norm/layer_000": 2.0, "grad/norm_log10/layer_000/attn_q": -3.0})
    assert len(read(tmp_path).Tags()["scalars"]) == (3 if matrices else 1)
    assert len(rows(tmp_path)[0]) == 4


def test_layout_reaches_tensorboard(tmp_path):
    with closing(Tracker(tmp_path)) as run:
        run.layout(chart_layout(["attn_q"]))
    (event,) = read(tmp_path).Tensors("custom_scalars__config__")
    layout = layout_pb2.Layout.FromString(event.tensor_proto.string_val[0])  # pyright: ignore[reportAttributeAccessIssue]
    first, second, *_ = layout.category
    assert (first.title, first.closed, first.chart[0].title) == ("overview", False, "held-out loss")
    assert all(category.closed for category in layout.category[1:])
    assert second.chart[2].title == "gain |delta_l| / |delta_(l+1)|, by block"
    assert list(second.chart[2].multiline.tag) == [r"^gain/layer_\d+$"]


@contextmanager
def full_disk(room: int = 0):
    """Writes beyond `room` bytes of any file fail, with "File too large", as they do on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_warns_once_and_loses_nothing(tmp_path, wording):
    warnings = []
    run = Tracker(tmp_path, warn=warnings.append)
    run.log(0, {"x": 0.0})
    assert rows(tmp_path) == []  # records wait for a flush
    assert run.drain() and len(rows(tmp_path)) == 1
    with full_disk():
        for step in range(1, 100):
            run.log(step, {"x": float(step)})
            assert not run.flush()
        assert not run.drain()
        assert rows(tmp_path) == [{"step": 0, "x": 0.0}]
        assert points(tmp_path, "x") == [(0, 0.0)]
    (warning,) = warnings
    wording(warning, tmp_path)
    run.finish({"x": 99.0})
    assert points(tmp_path, "x") == [(step, float(step)) for step in range(100)]
    assert rows(tmp_path) == [{"step": step, "x": float(step)} for step in range(100)]


def test_a_disk_that_stays_full_ends_in_whole_records(tmp_path):
    warnings = []
    run = Tracker(tmp_path, warn=warnings.append)
    run.log(0, {"x": 0.0})
    assert run.flush()
    line = (tmp_path / "metrics.jsonl").read_bytes()
    with full_disk(len(line) + 5):  # the next row is torn
        run.log(1, {"x": 1.0})
        run.close()
    assert (tmp_path / "metrics.jsonl").read_bytes() == line and len(warnings) == 1


def test_a_backend_that_failed_does_not_silence_the_warning_of_a_full_disk(tmp_path, monkeypatch, wording):
    class Bad(backends.Backend):
        def __init__(self, directory, first_step):
            raise OSError("no key")

    monkeypatch.setitem(backends.BACKENDS, "csv", Bad)
    warnings = []
    run = Tracker(tmp_path, backends=["csv"], warn=warnings.append)
    with full_disk(10):
        run.log(1, {"x": 1.0})
        run.close()
    assert len(warnings) == 2
    wording("\n".join(warnings), volatile=r"[\d,]+ bytes are free")


def test_a_disk_that_fills_up_and_empties_again_leaves_no_torn_record(tmp_path):
    run = Tracker(tmp_path, warn=lambda _: None)
    for step in range(200):
        with full_disk(37 * step % 1000):
            run.log(step, {"x": 1.0})
            run.flush()
    run.close()
    assert [row["step"] for row in rows(tmp_path)] == [step for step, _ in points(tmp_path, "x")] == list(range(200))


def test_a_file_that_cannot_be_written_again_is_opened_again(tmp_path):
    """As after a network drive came back: its old descriptor stays dead."""
    log = AppendFile(tmp_path / "log")
    os.dup2(os.open(tmp_path / "log", os.O_RDONLY), log._file.fileno())
    log.append(b"one\n")
    with pytest.raises(OSError):
        log.flush()
    log.append(b"two\n")
    log.flush()
    log.close()
    assert (tmp_path / "log").read_bytes() == b"one\ntwo\n"


def test_records_that_wait_for_the_disk_do_not_fill_the_memory(tmp_path):
    log = AppendFile(tmp_path / "log")
    record = bytes(MAX_PENDING // 4)
    with full_disk():
        for _ in range(6):
            log.append(record)
        assert log.lost == 2
    log.append(record)  # there is room again
    log.flush(sync=True)
    log.close()
    assert (tmp_path / "log").stat().st_size == 5 * len(record) and log.lost == 2


@pytest.mark.parametrize(
    "torn",
    [
        b'{"step":3,"loss":0.',
        '{"step":3,"é":1}'.encode()[:12],  # in the middle of a character
        b"\0" * 4096,  # a length that a power cut kept, without the bytes
        b'{"step":3,"loss":0.5}',  # whole, but for its newline
        b"\xff\xfe\n",
        b"[" * 100_000 + b"\n",
        b'{"step":7,"loss":1.0}\n{"step":8,"loss":1.0}\n',  # what the checkpoint does not know of
        b'{"step":7,"loss":1.0}\n\0\0\0{"step":1,"loss":0.5}\n',
        b'[1]\nnull\n{"step":"x"}\n{"step":3}',  # rows of nothing known
    ],
)
def test_what_a_crash_left_of_a_log_is_cut_off(tmp_path, torn):
    log = tmp_path / "metrics.jsonl"
    whole = b'{"step":1,"loss":2.0}\n{"step":2,"loss":1.0}\n'
    log.write_bytes(whole + torn)
    with closing(Tracker(tmp_path, first_step=7)) as run:
        assert log.read_bytes() == whole
        run.log(7, {"loss": 0.25})
    assert [row["step"] for row in rows(tmp_path)] == [1, 2, 7]


def test_a_log_is_cut_without_room_for_a_copy(tmp_path, disk):
    log = tmp_path / "metrics.jsonl"
    log.write_bytes(b'{"step":1}\n{"step":2}\n{"st')
    disk.refuse("rename", errno.ENOSPC)
    Tracker(tmp_path, first_step=2).close()
    assert rows(tmp_path) == [{"step": 1}]
    log.write_bytes(b'{"step":1}\n{"step":5}\n{"step":2}\n')  # out of order, as no writer leaves it
    with pytest.raises(OSError):
        Tracker(tmp_path, first_step=4)
    assert len(rows(tmp_path)) == 3


def test_after_close_nothing_is_written_and_nothing_raises(tmp_path):
    run = Tracker(tmp_path)
    run.log(0, {"x": 1.0})
    run.close()
    run.close()
    run.log(1, {"x": 1.0})
    assert run.drain()
    assert rows(tmp_path) == [{"step": 0, "x": 1.0}]
