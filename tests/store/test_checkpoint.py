"""Checkpoints: what is written and in which order, what verifies, what is kept, and what a run goes back to."""

import ast
import hashlib
import json
import os
import pickle
import shutil
import sys
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import pytest

from train.cli import main
from train.core.state import State
from train.disk import write_json
from train.errors import UserError
from train.run.resume import abreast, finished_run
from train.store import checkpoint as checkpoints_module
from train.store import manifest
from train.store.checkpoint import Checkpoints, newest_common
from train.store.rundir import directory_of

ROOT = Path(__file__).parents[2]
DEVICE = jax.devices()[0]


class Adam(NamedTuple):
    steps: np.ndarray
    mu: dict


def state_at(step: int, width: int = 3, dtype: str = "float32") -> State:
    params = {"blocks": {"q": np.full((2, width), step, dtype)}, "embed": np.arange(2 * width, dtype=dtype) - step}
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


def flip(path: Path, bit: int = 5) -> None:
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


# What is written


def test_what_is_restored_is_what_was_saved(saved):
    checkpoints = Checkpoints(saved)
    assert checkpoints.steps() == [10, 20, 30] and checkpoints.newest() == 30
    for step in (10, 20, 30):
        assert same(checkpoints.restore(step, state_at(0), DEVICE), state_at(step))
        assert same(checkpoints.params(step, DEVICE), state_at(step).params)
        assert checkpoints.meta(step) == {"row": {"loss/val": 3.0 - step / 100}, "step": step}


def test_the_manifest_tells_of_every_file_and_array(saved):
    folder = Checkpoints(saved).folder(20)
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    told = json.loads(files.pop("manifest.json").read_text())
    assert told["files"].keys() == files.keys() and "meta.json" in files and len(files) > 5
    for name, path in files.items():
        content = path.read_bytes()
        assert told["files"][name] == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    count = hashlib.sha256(np.int32(20).tobytes()).hexdigest()
    assert told["arrays"]["optimizer/1/steps"] == {"dtype": "int32", "shape": [], "sha256": count}
    assert told["arrays"]["params/blocks/q"]["shape"] == [2, 3]
    assert (told["format"], told["step"], told["loss_val"]) == (1, 20, 2.8)
    assert told["origin"]["versions"].keys() >= {
        "jax",
        "jaxlib",
        "flax",
        "optax",
        "orbax-checkpoint",
        "numpy",
        "python",
    }
    assert told["origin"]["device"] == {"kind": "cpu", "name": "cpu", "count": 4} | {
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    }


def test_all_is_synced_before_it_is_renamed_and_verified_before_the_oldest_goes(run, monkeypatch):
    calls = []
    fsync, replace, verify = os.fsync, os.replace, manifest.verify

    def note_fsync(descriptor):
        calls.append(("fsync", os.readlink(f"/proc/self/fd/{descriptor}")))
        fsync(descriptor)

    def note_replace(source, target):
        calls.append(("replace", str(source), str(target)))
        replace(source, target)

    def note_verify(folder, step):
        calls.append(("verify", str(folder)))
        return verify(folder, step)

    if not Path("/proc/self/fd").is_dir():
        pytest.skip("needs /proc to see what is synced")
    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(os, "replace", note_replace)
    monkeypatch.setattr(checkpoints_module.manifests, "verify", note_verify)
    checkpoints = Checkpoints(run)
    checkpoints.save(state_at(40), {})
    final, writing = str(checkpoints.folder(40)), str(checkpoints.directory / ".00000040.writing")
    at = calls.index(("replace", writing, final))
    inside = {f"{writing}/{path.relative_to(final)}" for path in Path(final).rglob("*")}
    assert inside | {writing} <= {call[1] for call in calls[:at] if call[0] == "fsync"} and len(inside) > 8
    aside = ("replace", str(checkpoints.folder(10)), str(checkpoints.directory / ".00000010.aside"))
    assert calls[at + 1 :] == [("fsync", str(checkpoints.directory)), ("verify", final), aside]


def test_the_newest_three_and_the_best_are_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    kept = []
    for step, loss in enumerate([2.0, 1.0, 1.5, 1.0, None, float("nan"), 1.2, 0.5, 3.0], 1):
        checkpoints.save(state_at(step), {"row": {} if loss is None else {"loss/val": loss}})
        kept.append(checkpoints.steps())
    assert kept[3] == [2, 3, 4] and kept[4:] == [[2, 3, 4, 5], [2, 4, 5, 6], [2, 5, 6, 7], [6, 7, 8], [7, 8, 9]]
    assert sorted(path.name for path in checkpoints.directory.iterdir()) == ["00000007", "00000008", "00000009"]


def test_what_was_not_written_as_it_should_be_costs_no_older_one(run, monkeypatch):
    """Here Orbax's file is damaged after the manifest and before the second look."""
    replace = os.replace

    def damaging(source, target):
        replace(source, target)
        flip(Path(target) / "meta.json")

    monkeypatch.setattr(os, "replace", damaging)
    with pytest.raises(UserError, match=r"00000040: cannot save: meta.json: its sha256 differs$"):
        Checkpoints(run).save(state_at(40), {})
    monkeypatch.undo()
    assert Checkpoints(run).steps() == [10, 20, 30, 40] and Checkpoints(run).newest(lambda _: None) == 30


def test_a_save_over_the_same_step_replaces_it_or_leaves_it(run, monkeypatch):
    checkpoints = Checkpoints(run)
    checkpoints.save(state_at(30)._replace(params=state_at(7).params), {"again": True})
    assert checkpoints.meta(30)["again"] and same(checkpoints.params(30, DEVICE), state_at(7).params)
    replace = os.replace

    def full(source, target):
        if str(source).endswith(".writing"):
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(UserError, match="No space left on device"):
        checkpoints.save(state_at(30), {})
    assert checkpoints.damage(30) is None and checkpoints.meta(30)["again"]
    assert sorted(path.name for path in checkpoints.directory.iterdir()) == ["00000010", "00000020", "00000030"]


# What verifies


def files_of(run: Path, step: int = 30) -> list[Path]:
    return sorted(path for path in Checkpoints(run).folder(step).rglob("*") if path.is_file())


@pytest.mark.parametrize("fault", [flip, lambda path: path.write_bytes(path.read_bytes()[:-1]), Path.unlink])
def test_whatever_file_is_damaged_the_one_before_is_used(run, fault):
    for path in files_of(run):
        before, said = path.read_bytes(), []
        fault(path)
        assert Checkpoints(run).newest(said.append) == 20
        (line,) = said
        assert line.startswith(f"{run}/ckpt: goes back to step 20; skipped step 30: ") and path.name in line
        with pytest.raises(UserError, match="00000030: cannot restore: "):
            Checkpoints(run).restore(30, state_at(0), DEVICE)
        path.write_bytes(before)
    assert Checkpoints(run).newest() == 30


def test_a_flipped_bit_restores_wrong_where_no_hash_is_looked_at(tmp_path):
    """Why there are hashes: Orbax takes it."""
    import orbax.checkpoint as ocp

    state = State({"w": np.random.default_rng(0).normal(size=(16, 32)).astype(np.float32)}, (), np.int32(5))
    Checkpoints(tmp_path).save(state, {})
    state_folder = Checkpoints(tmp_path).folder(5) / "state"
    flip(max((path for path in state_folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size), 8000)
    with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as checkpointer:
        wrong = np.asarray(checkpointer.restore(state_folder)["params"]["w"])
    assert wrong.shape == (16, 32) and 0 < (wrong != state.params["w"]).sum()
    with pytest.raises(UserError, match="00000005: cannot restore: .*: its sha256 differs"):
        Checkpoints(tmp_path).restore(5, state, DEVICE)


def test_links_and_foreign_files_in_a_checkpoint_are_refused(run, tmp_path):
    folder = Checkpoints(run).folder(30)
    meta = (folder / "meta.json").read_bytes()
    (tmp_path / "outside").write_bytes(meta)
    (folder / "meta.json").unlink()
    (folder / "meta.json").symlink_to(tmp_path / "outside")
    assert Checkpoints(run).damage(30) == "meta.json: is a link"
    (folder / "meta.json").unlink()
    os.mkfifo(folder / "meta.json")
    assert Checkpoints(run).damage(30) == "meta.json: is neither a file nor a folder"
    (folder / "meta.json").unlink()
    (folder / "meta.json").write_bytes(meta)
    (folder / "state" / "more").write_text("x")
    assert Checkpoints(run).damage(30) == "state/more: was not saved with it"
    (folder / "state" / "more").unlink()
    (folder / "manifest.json").rename(tmp_path / "manifest.json")
    (folder / "manifest.json").symlink_to(tmp_path / "manifest.json")
    assert "cannot be read" in str(Checkpoints(run).damage(30))
    (folder / "manifest.json").unlink()
    os.mkfifo(folder / "manifest.json")
    assert Checkpoints(run).damage(30) == "manifest.json: is no file"  # and nobody waits for what comes out of it
    shutil.rmtree(folder)
    folder.symlink_to(Checkpoints(run).folder(20))
    assert Checkpoints(run).damage(30) == "it is no folder of its own"


def test_what_others_put_beside_does_no_harm(run):
    folder = Checkpoints(run).directory
    for name in (".DS_Store", "notes.txt", "²²²²²²²²", "12345678901234567890123", "0000040", "000000040"):
        (folder / name).write_text("x")
    (folder / "00000030" / ".DS_Store").write_text("x")
    (folder / "00000030" / "state" / ".nfs0001").symlink_to("/nowhere")
    (folder / "best").symlink_to("00000010")
    (folder / "copy of 00000030").mkdir()
    assert Checkpoints(run).steps() == [10, 20, 30] and Checkpoints(run).newest() == 30
    Checkpoints(run).save(state_at(40), {})
    assert Checkpoints(run).steps() == [20, 30, 40] and (folder / "notes.txt").exists()


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "not the JSON"),
        ("[]", "not the JSON"),
        ("[" * 100_000, "not the JSON"),
        ('{"sha256": 5}', "its sha256 differs"),
        ("\xff", "not the JSON"),
        ('{"step": ' + "9" * 5000 + "}", "not the JSON"),
    ],
)
def test_a_manifest_of_nonsense_is_a_damaged_one(run, text, why):
    (Checkpoints(run).folder(30) / "manifest.json").write_text(text, encoding="latin-1")
    assert why in str(Checkpoints(run).damage(30))


def forged(folder: Path, **changes) -> None:
    """A manifest whose own hash is right, whoever wrote the rest."""
    path = folder / "manifest.json"
    content = json.loads(path.read_text()) | changes
    content.pop("sha256")
    path.write_text(json.dumps(content | {"sha256": manifest._own_sum(content)}))


def test_a_manifest_of_another_format_or_step_is_refused(run):
    folder = Checkpoints(run).folder(30)
    for changes, why in (
        ({"format": 2}, "manifest.json: expected format 1, got 2"),
        ({"format": 1, "step": 20}, "it was saved at step 20"),
        ({"step": "30"}, "manifest.json: step is not as expected"),
        ({"step": 30, "files": {"../../../x": {"bytes": 1, "sha256": ""}}}, "meta.json: was not saved with it"),
    ):
        forged(folder, **changes)
        assert Checkpoints(run).damage(30) == why


def test_arrays_are_compared_with_what_was_saved_after_they_are_read(run):
    """Should Orbax read something else than it wrote."""
    folder = Checkpoints(run).folder(30)
    arrays = json.loads((folder / "manifest.json").read_text())["arrays"]
    arrays["params/embed"]["sha256"] = "0" * 64
    forged(folder, arrays=arrays)
    with pytest.raises(UserError, match="cannot restore: params/embed is not what was saved"):
        Checkpoints(run).restore(30, state_at(0), DEVICE)
    with pytest.raises(UserError, match="params/embed is not what was saved"):
        Checkpoints(run).params(30, DEVICE)


def test_when_none_is_whole_that_is_an_error(run):
    for step in (10, 20, 30):
        flip(Checkpoints(run).folder(step) / "meta.json")
    with pytest.raises(UserError) as caught:
        Checkpoints(run).newest()
    said = str(caught.value)
    assert said.startswith(f"{run}/ckpt: no checkpoint can be used (step 30: meta.json: its sha256 differs; step 20: ")
    assert said.endswith("; bring back a copy of one, or delete what is there to start the run anew")
    shutil.rmtree(run / "ckpt")
    assert Checkpoints(run).newest() is None


def test_a_checkpoint_without_a_manifest_is_one_line(run):
    for path in run.rglob("manifest.json"):
        path.unlink()
    with pytest.raises(UserError, match=r"step 30: it has no manifest.json \(older versions wrote none\)"):
        Checkpoints(run).newest()


def test_other_shapes_dtypes_and_names_are_listed(saved):
    wide, half = state_at(0, width=4), state_at(0, dtype="float16")
    with pytest.raises(UserError, match=r"params/blocks/q: float32 \[2, 3\] there, float32 \[2, 4\] here"):
        Checkpoints(saved).restore(30, wide, DEVICE)
    with pytest.raises(UserError, match=r"params/embed: float32 \[6\] there, float16 \[6\] here and 1 more|float16"):
        Checkpoints(saved).restore(30, half, DEVICE)
    with pytest.raises(UserError, match=r"ema/embed: nothing there, float32 \[6\] here"):
        Checkpoints(saved).restore(30, state_at(0)._replace(ema=state_at(0).params), DEVICE)


# Groups, and going on


def test_a_group_goes_back_to_the_newest_step_that_all_have_whole(saved, tmp_path):
    runs = [Path(shutil.copytree(saved, tmp_path / name)) for name in ("a", "b")]
    both = [Checkpoints(run) for run in runs]
    said: list[str] = []
    assert newest_common(both, said.append) == 30 and not said
    flip(files_of(runs[0])[0])
    flip(files_of(runs[1], 20)[0])
    assert newest_common(both, said.append) == 10
    assert "goes back to step 10; skipped a, step 30: " in said[0] and "; b, step 20: " in said[0]
    flip(files_of(runs[1], 10)[0])
    with pytest.raises(UserError, match=r"ckpt and of 1 more: no checkpoint can be used \(a, step 30"):
        newest_common(both)
    shutil.rmtree(runs[0] / "ckpt")
    assert newest_common(both) is None  # one of them was never saved


def test_what_is_newer_makes_room_and_leftovers_go(run):
    checkpoints = Checkpoints(run)
    leftover = checkpoints.directory / ".00000040.writing"
    shutil.copytree(checkpoints.folder(30), leftover)
    flip(files_of(run)[0])
    checkpoints.go_on_from(20)
    assert checkpoints.steps() == [10, 20] and not leftover.exists()
    assert (checkpoints.directory / ".00000030.aside").is_dir()  # not gone before something better is there
    checkpoints.save(state_at(25), {})
    assert sorted(path.name for path in checkpoints.directory.iterdir()) == ["00000010", "00000020", "00000025"]


def test_variants_without_a_whole_step_in_common_go_on_apart(saved, tiny, tmp_path):
    variants = tiny({"runs_dir": str(tmp_path), "sweep": {"seed": [0, 1, 2]}}).variants
    for variant in variants:
        shutil.copytree(saved, directory_of(variant))
    zero, one, two = (directory_of(variant) for variant in variants)
    assert abreast(variants) == [tuple(variants)]
    flip(files_of(zero, 30)[0])
    assert abreast(variants) == [tuple(variants)]  # all have 20
    flip(files_of(one, 20)[0])
    assert abreast(variants) == [(variants[1], variants[2]), (variants[0],)]
    done = {"variant": two.name, "exit_reason": "done", "first_nonfinite_step": None, "verdict": None}
    write_json(two / "summary.json", done)
    assert abreast(variants)[0] == (variants[2],)
    flip(files_of(two, 30)[0])
    assert finished_run(two) is None  # its last part is trained again
    shutil.rmtree(two / "ckpt")
    assert finished_run(two) is not None  # nobody needs its checkpoints


# No pickle


def test_nothing_here_can_unpickle():
    """No module of the project names pickle, or what rests on it; numpy is never allowed to."""
    dangerous = {"pickle", "_pickle", "cPickle", "marshal", "shelve", "dill", "cloudpickle", "joblib"}
    for path in [p for package in ("model", "data", "train") for p in (ROOT / package).rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {name.partition(".")[0] for name in names} & dangerous, path
            if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
                assert isinstance(node.value, ast.Constant) and node.value.value is False, path


def test_no_pickle_is_read_while_a_checkpoint_is(saved, monkeypatch):
    found = []
    monkeypatch.setattr(pickle, "loads", lambda *_, **__: found.append("loads"))
    monkeypatch.setattr(pickle, "load", lambda *_, **__: found.append("load"))
    listening = [True]
    sys.addaudithook(lambda event, _: found.append(event) if listening and event == "pickle.find_class" else None)
    assert same(Checkpoints(saved).restore(30, state_at(0), DEVICE), state_at(30))
    Checkpoints(saved).params(20, DEVICE)
    listening.clear()
    assert not found


# Through the command line


@pytest.fixture
def copied(trained, tmp_path) -> Path:
    """The finished run of two variants, in a folder of this test."""
    return Path(shutil.copytree(trained[1].parent, tmp_path / "runs" / "tiny"))


def test_readers_of_a_run_go_back_and_say_so(trained, copied, capsys):
    flip(files_of(copied / "with", 40)[0])
    assert main(["sample", str(copied / "with"), "--top", "3"]) == 0
    out = capsys.readouterr()
    assert f"warning: {copied}/with/ckpt: goes back to step 20; skipped step 40: config.yaml: its sha256" in out.err
    assert out.err.count("\n") == 1
    flip(files_of(copied / "with", 20)[0])
    # The other variant is not touched, and nothing is begun before all is looked at.
    for arguments in (
        ["sample", str(copied / "with")],
        ["probe", str(trained[0]), "--checkpoint", str(copied / "with"), "variants={with: {}}"],
        ["train", str(trained[0]), f"runs_dir={copied.parents[0]}", "name=new", f"train.init_from={copied / 'with'}"],
        ["train", str(trained[0]), f"runs_dir={copied.parents[0]}"],
    ):
        assert main(arguments) == 1
        err = capsys.readouterr().err
        assert "/with/ckpt: no checkpoint can be used (step 40: config.yaml: " in err and err.count("\n") == 1
    assert not (copied.parents[0] / "new").exists()
