"""Checkpoints: order of the calls that write one, what is refused, what is kept, and where a run goes back to."""

import errno
import os
import pickle
import shutil
import sys
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_tensors import handmade

from runs import contents, flip
from train.core.state import State
from train.device.platform import environment
from train.errors import UserError
from train.store.checkpoint import Checkpoints, Header, check_dtypes, newest_common
from train.store.provenance import same_config, saved_config

ROOT = Path(__file__).parents[2]


class Adam(NamedTuple):
    steps: np.ndarray
    mu: dict


def state_at(step: int, width: int = 3, dtype="float32") -> State:
    params = {"blocks": {"q": np.full((2, width), step, dtype)}, "embed": np.arange(2 * width).astype(dtype)}
    params["embed"] = params["embed"] - np.asarray(step, dtype)
    return State(params, ((), Adam(np.int32(step), jax.tree.map(np.negative, params))), np.int32(step))


def same(one, other) -> bool:
    leaves = [jax.tree.leaves(tree) for tree in (one, other)]
    return len(leaves[0]) == len(leaves[1]) and all(
        np.array_equal(np.asarray(a), np.asarray(b)) and a.dtype == b.dtype for a, b in zip(*leaves, strict=True)
    )


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """A run directory with checkpoints of steps 10, 20 and 30. Copied, never changed."""
    run = tmp_path_factory.mktemp("saved") / "run"
    for step in (10, 20, 30):
        Checkpoints(run).save(state_at(step), {"row": {"loss/val": 3.0 - step / 100}})
    return run


@pytest.fixture
def run(saved, tmp_path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "run"))


def names(checkpoints: Checkpoints) -> list[str]:
    return sorted(path.name for path in checkpoints.folder.iterdir())


# What is written


def test_what_is_restored_is_what_was_saved(saved):
    checkpoints = Checkpoints(saved)
    assert checkpoints.steps() == [10, 20, 30] and checkpoints.newest() == 30
    for step in (10, 20, 30):
        assert same(checkpoints.restore(step, state_at(0)), state_at(step))
        assert same(checkpoints.params(step), state_at(step).params)
        assert checkpoints.header(step).meta == {"row": {"loss/val": 3.0 - step / 100}}


def test_the_file_is_one_that_the_safetensors_library_reads(saved):
    library = pytest.importorskip("safetensors.numpy")
    arrays = library.load_file(Checkpoints(saved).path(20))
    assert arrays.pop("sha256").shape == (32,)
    assert same(arrays, Checkpoints(saved).arrays(20))
    assert arrays["optimizer/1/steps"] == 20 and arrays["params/blocks/q"].shape == (2, 3)


def test_a_checkpoint_knows_its_config_and_where_it_was_made(tmp_path, tiny, wording):
    config = tiny({}).variants[0].config
    Checkpoints(tmp_path, config, environment()).save(state_at(5), {"row": {"loss/val": 2.5}})
    header = Checkpoints(tmp_path).header(5)
    assert saved_config(tmp_path, header) == config and header.loss_val == 2.5
    assert header.provenance.keys() == {"versions", "flags", "device"}
    assert header.provenance["versions"].keys() == {"jax", "jaxlib", "flax", "optax", "numpy", "python"}
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    assert header.provenance["device"] == {"kind": "cpu", "name": "cpu", "count": 1, "cores": cores}
    same_config(tmp_path, header, config)
    with wording.raises(UserError, tmp_path):
        same_config(tmp_path, header, tiny({"seed": 3}).variants[0].config)


def test_a_file_is_synced_before_it_has_its_name(run, disk):
    checkpoints = Checkpoints(run)
    checkpoints.save(state_at(40), {})
    operations = ("fsync", "rename", "unlink")
    calls = [(call.operation, Path(call.path).name) for call in disk.calls if call.operation in operations]
    temporary = calls[0][1]
    assert temporary.startswith(".00000040.safetensors.") and temporary.endswith(".tmp")
    assert calls[:3] == [("fsync", temporary), ("rename", temporary), ("fsync", "ckpt")]
    assert ("unlink", "00000010.safetensors") in calls[3:]
    assert names(checkpoints) == [f"000000{step}.safetensors" for step in (20, 30, 40)]


def test_the_newest_three_and_the_best_are_kept(tmp_path):
    after, best = [], []
    for step, loss in enumerate([2.0, 1.0, 1.5, 1.0, None, float("nan"), 1.2, 0.5, 3.0], 1):
        # Each by another process, which has to look up the losses.
        checkpoints = Checkpoints(tmp_path)
        checkpoints.save(state_at(step), {"row": {} if loss is None else {"loss/val": loss}})
        after.append(checkpoints.steps())
        best.append(Checkpoints(tmp_path).best())
    assert best == [1, 2, 2, 2, 2, 2, 2, 8, 8]
    assert after[3] == [2, 3, 4] and after[4:] == [[2, 3, 4, 5], [2, 4, 5, 6], [2, 5, 6, 7], [6, 7, 8], [7, 8, 9]]
    assert names(checkpoints) == [f"0000000{step}.safetensors" for step in (7, 8, 9)]


def test_one_that_cannot_be_removed_does_not_keep_the_others(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.path(1).mkdir(parents=True)
    for step in range(2, 9):
        checkpoints.save(state_at(step), {"row": {}})
    assert checkpoints.steps() == [1, 6, 7, 8]


def test_a_dtype_that_no_checkpoint_holds_is_one_line(wording):
    check_dtypes({"a": jnp.ones(2, jnp.bfloat16), "b": np.ones(2, np.complex64)})
    with wording.raises(UserError, "optimizer.name"):
        check_dtypes({"rng": {"key": jax.random.key(0)}})


def test_a_damaged_checkpoint_is_not_kept_as_the_best(run):
    flip(Checkpoints(run).path(20), 700)
    for step in (40, 50):
        Checkpoints(run).save(state_at(step), {"row": {"loss/val": 3.0}})
    assert Checkpoints(run).steps() == [30, 40, 50]


def test_what_does_not_read_back_as_written_is_an_error_and_leaves_no_file(run, disk, wording):
    def damage(call):
        if call.operation == "fsync" and call.path.endswith(".tmp"):
            flip(Path(call.path))

    before = contents(run)
    disk.after = damage
    with wording.raises(UserError, Checkpoints(run).path(40)):
        Checkpoints(run).save(state_at(40), {})
    assert contents(run) == before


def test_a_save_that_does_not_fit_leaves_everything_as_it_was(run, disk, nearly_full, wording):
    checkpoints = Checkpoints(run)
    checkpoints.save(state_at(30)._replace(params=state_at(7).params), {"again": True})
    assert checkpoints.header(30).meta == {"again": True} and same(checkpoints.params(30), state_at(7).params)

    before = contents(run)
    disk.refuse("rename", errno.ENOSPC)
    for step in (30, 40):
        with wording.raises(UserError, f"{run}/ckpt/000000{step}.safetensors") as caught:
            checkpoints.save(state_at(step), {})
        assert "104 bytes" in str(caught.value) and "12,345 bytes" in str(caught.value)
        assert contents(run) == before and checkpoints.header(30).meta == {"again": True}


# What is refused


def moved(path: Path) -> Path:
    return path.rename(path.parents[2] / "moved")


@pytest.mark.parametrize(
    "fault",
    [
        flip,
        lambda path: flip(path, 8 * 650),
        lambda path: os.truncate(path, 650),
        lambda path: path.symlink_to(moved(path)),
        lambda path: moved(path) and os.mkfifo(path),  # and it is not waited for
        lambda path: moved(path) and path.mkdir(),
        lambda path: shutil.copy(path.with_name("00000020.safetensors"), path),
        lambda path: path.write_bytes(b""),
    ],
    ids=["length", "bit", "cut", "link", "pipe", "folder", "other step", "empty"],
)
def test_the_one_before_is_used_instead_of_what_is_no_whole_checkpoint_of_its_step(run, fault, wording):
    fault(Checkpoints(run).path(30))
    lines: list[str] = []
    reason = str(Checkpoints(run).damage(30))
    assert Checkpoints(run).newest(lines.append) == 20
    (line,) = lines
    assert line.endswith(f": {reason}")
    wording(line, f"{run}/ckpt")
    with wording.raises(UserError, f"{run}/ckpt/00000030.safetensors"):
        Checkpoints(run).restore(30, state_at(0))


def test_other_files_in_the_folder_do_no_harm(run):
    folder = Checkpoints(run).folder
    others = (".DS_Store", "notes.txt", "²²²²²²²².safetensors", f"{'1' * 23}.safetensors", "0000040.safetensors")
    for name in (*others, "000000040.safetensors", "00000040.safetensors.tmp", "x00000040.safetensors"):
        (folder / name).write_text("x")
    (folder / "best").symlink_to("00000010.safetensors")
    (folder / "00000050").mkdir()
    assert Checkpoints(run).steps() == [10, 20, 30] and Checkpoints(run).newest() == 30
    Checkpoints(run).save(state_at(40), {})
    assert Checkpoints(run).steps() == [20, 30, 40] and (folder / "notes.txt").exists()


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"[]",
        b"[" * 100_000,
        b'{"__metadata__": {"step": 30}}',
        b'{"__metadata__": {"format": "2"}}',
        b'{"__metadata__": {"format": "1", "step": "x"}}',
        b'{"__metadata__": {"format": "1", "step": "30", "meta": "1", "config": "1", "provenance": "1"}}',
    ],
    ids=["empty", "list", "deep", "no format", "format", "step", "meta"],
)
def test_a_header_of_nonsense_is_refused_even_if_its_digest_is_right(run, header, wording):
    handmade(Checkpoints(run).path(30), header)
    wording(Checkpoints(run).damage(30))


def test_when_none_is_whole_that_is_an_error(run, wording):
    for step in (10, 20, 30):
        flip(Checkpoints(run).path(step), 700)
    with wording.raises(UserError, f"{run}/ckpt"):
        Checkpoints(run).newest()
    shutil.rmtree(run / "ckpt")
    assert Checkpoints(run).newest() is None


def test_other_shapes_dtypes_and_names_are_listed(saved, wording):
    wide, half = state_at(0, width=4), state_at(0, dtype="float16")
    with wording.raises(UserError, Checkpoints(saved).path(30)):
        Checkpoints(saved).restore(30, wide)
    with wording.raises(UserError, Checkpoints(saved).path(30)):
        Checkpoints(saved).restore(30, half)
    with wording.raises(UserError, Checkpoints(saved).path(30)):
        Checkpoints(saved).restore(30, state_at(0)._replace(ema=state_at(0).params))


# Groups, and going on


def test_a_group_goes_back_to_the_newest_step_that_all_have_whole(saved, tmp_path, wording):
    runs = [Path(shutil.copytree(saved, tmp_path / name)) for name in ("a", "b")]
    both = [Checkpoints(run) for run in runs]
    lines: list[str] = []
    assert newest_common(both, lines.append) == 30 and not lines
    flip(both[0].path(30))
    flip(both[1].path(20))
    assert newest_common(both, lines.append) == 10
    wording(lines[0], f"{runs[0]}/ckpt and of 1 more")
    flip(both[1].path(10))
    with wording.raises(UserError, f"{runs[0]}/ckpt and of 1 more"):
        newest_common(both)
    shutil.rmtree(runs[0] / "ckpt")
    assert newest_common(both) is None  # one of them was never saved


def test_newer_checkpoints_are_set_aside_and_leftovers_removed(run):
    checkpoints = Checkpoints(run)
    leftover = checkpoints.folder / ".00000040.safetensors.0a1b2c3d.tmp"
    leftover.write_bytes(b"x")
    flip(checkpoints.path(30))
    checkpoints.go_on_from(20)
    # The damaged one is removed only once there is something newer.
    assert names(checkpoints) == [".00000030.safetensors.aside", "00000010.safetensors", "00000020.safetensors"]
    checkpoints.save(state_at(25), {})
    assert names(checkpoints) == [f"000000{step}.safetensors" for step in (10, 20, 25)]


def test_a_pickle_in_the_place_of_a_checkpoint_is_refused_and_not_loaded(run, wording):
    loaded, listening = [], [True]
    sys.addaudithook(lambda event, _: loaded.append(event) if listening and event == "pickle.find_class" else None)
    Checkpoints(run).path(30).write_bytes(pickle.dumps(np.float32(1)))
    with wording.raises(UserError, Checkpoints(run).path(30), volatile=r"(?<=header of )[\d,]+|\d+$"):
        Checkpoints(run).restore(30, state_at(0))
    listening.clear()
    assert not loaded


def test_a_header_survives_its_text():
    header = Header(3, {"row": {"loss/val": float("nan")}}, {"seed": 1}, {"data": None})
    back = Header.from_text(header.as_text())
    assert back.loss_val is None and (back.step, back.config, back.provenance) == (3, {"seed": 1}, {"data": None})
