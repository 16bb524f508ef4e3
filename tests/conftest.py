"""JAX made strict for every test: no implicit rank or dtype promotion, and warnings are errors."""

import gc
import json
import os
import re
import shutil
import signal
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

# Nearly all the time of a test is the compilation of a tiny program that runs a few times: optimization level 0, and
# XLA's old emitters, which compile in half the time (0.11 has them no more, and an unknown flag ends the process), in
# one piece (splitting it costs a twentieth, and both cores have work anyway).
os.environ["XLA_FLAGS"] = " ".join(
    (
        "--xla_backend_optimization_level=0",
        "--xla_cpu_parallel_codegen_split_count=1",
        "--xla_cpu_use_fusion_emitters=false" if tuple(map(int, version("jaxlib").split(".")[:2])) < (0, 11) else "",
        os.environ.get("XLA_FLAGS", ""),  # of two equal flags the last one counts
    )
)
# And the same tiny program, built again by the next run or in the other worker, is compiled once a session.
os.environ["JAX_COMPILATION_CACHE_DIR"] = (
    os.environ["JAX_COMPILATION_CACHE_DIR"]
    if "PYTEST_XDIST_WORKER" in os.environ
    else tempfile.mkdtemp(prefix="deltaflow-programs-")
)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # two spin while they wait for a core that the other worker has

import jax
import numpy as np
import pytest

from scripts.faults.programs import drawing, shared
from tests.messages import STALE, TESTS, Wording
from train.config.load import Experiment, from_mapping
from train.device.platform import environment

gc.set_threshold(50_000, 20, 50)  # as train/cli.py does: 0.93 of the time

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items):
    """Before any is deselected: messages recorded for parameters that a collected test has no more."""
    ids = {item.nodeid for item in items if not any("::" in argument for argument in config.args)}
    functions = {item.partition("[")[0] for item in ids}
    config.stash[STALE] = [each for each in TESTS if each.partition("[")[0] in functions and "[" in each]
    config.stash[STALE] = [each for each in config.stash[STALE] if each not in ids]
    if config.getoption("lf", False):  # which collects some parameters of a test alone
        config.stash[STALE] = []


def pytest_collection_finish():
    gc.freeze()  # modules and tests stay; JAX collects garbage whenever its caches are cleared


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Under `--dist loadfile`: the files that use one training go to one worker, so that it is done once a session."""
    if config.option.dist != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    uses = re.compile(r"\ndef \w+\([^)]*\b(?:(trained|probed)|original)\b")
    matches = {path: uses.search(path.read_text(encoding="utf-8")) for path in Path(__file__).parent.rglob("test_*.py")}
    scopes = {path: "trained" if match[1] else "original" for path, match in matches.items() if match}

    class ByFile(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return scopes.get(config.rootpath / file, file)

    return ByFile(config, log)


def pytest_unconfigure(config):
    if not hasattr(config, "workerinput"):  # xdist's workers share the folder of the process that started them
        shutil.rmtree(os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)


@pytest.fixture(scope="module", autouse=True)
def _forget_programs():
    """Else a worker holds 5 GB of them in the end."""
    yield
    jax.clear_caches()


@pytest.fixture(scope="module")
def shared_programs():
    """Runs of one structure share their compiled programs, within a module of tests that are about something else."""
    with shared({}):
        yield


@pytest.fixture(scope="module", autouse=True)
def _no_report(request):
    """Drawing report and heatmaps takes longer than most trainings here; these files and `trained` have them."""
    draws = request.module.__name__ in ("test_summary", "test_tensorboard_tabs")
    with drawing(report=draws, pictures=draws):
        yield


@pytest.fixture
def disk(tmp_path):
    """The calls that change files below `tmp_path`: `disk.calls`, `disk.refuse("fsync", errno.ENOSPC)`."""
    if sys.platform != "linux":
        pytest.skip("the calls that are counted are Linux's")
    from scripts.faults.injection import Disk, injected

    with injected(Disk(str(tmp_path))) as disk:
        yield disk


@pytest.fixture
def nearly_full(monkeypatch):
    """12,345 bytes are left on every disk."""
    usage = shutil.disk_usage("/")._replace(free=12345)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)


@pytest.fixture
def device_memory(monkeypatch):
    """Gives every device so many bytes from then on, by its own word, as an accelerator's."""
    return lambda free: monkeypatch.setattr(jax.Device, "memory_stats", lambda _: {"bytes_limit": free})


@pytest.fixture
def fresh_environment():
    """The environment as a run records it, which a process reads once: forgotten before and after the test."""
    environment.cache_clear()
    yield environment
    environment.cache_clear()


@pytest.fixture
def handlers():
    """Handlers of signals, equal before and after a test. Under nohup SIGHUP would be ignored, here and in children."""
    from train.device.signals import SIGNALS

    sighup = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    before = [signal.getsignal(number) for number in SIGNALS]
    yield before
    assert [signal.getsignal(number) for number in SIGNALS] == before and signal.set_wakeup_fd(-1) == -1
    signal.signal(signal.SIGHUP, sighup)


@pytest.fixture
def x64():
    """float64 for the time of one test, for laws that hold exactly."""
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


@pytest.fixture(scope="module", params=["cpu", "accelerator"])
def both_paths(request):
    """The branch of a CPU and that of an accelerator, where the code chooses by platform; both of them run here."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "accelerator":
            patch.setattr(jax.lax, "platform_dependent", lambda *args, default, **_: default(*args))
        jax.clear_caches()
        yield request.param
    jax.clear_caches()


@pytest.fixture(scope="session")
def corpus(tmp_path_factory) -> str:
    """The path of a text of 5,000 characters, 24 different ones."""
    words = "the gradient flows down through every block and a skip lets it pass unchanged norms keep it in range"
    drawn = np.random.default_rng(0).choice(words.split(), 1200)
    path = tmp_path_factory.mktemp("corpus") / "corpus.txt"
    path.write_text(" ".join(drawn)[:4999] + "\n", encoding="utf-8")
    return str(path)


@pytest.fixture(scope="session")
def tiny(corpus):
    """Builds the smallest useful experiment, with dotted keys set on it: tiny({"model.norm": "none"})."""

    def build(overrides: dict | None = None) -> Experiment:
        base = {
            "name": "tiny",
            "model.layers": 2,
            "model.width": 16,
            "model.heads": 2,
            "model.init_std": 0.1,
            "data.path": corpus,
            "data.context": 8,
            "data.batch": 4,
            "optimizer.warmup": 3,
            "train.steps": 30,
            "train.eval_every": 10,
            "train.eval_batches": 4,
            "train.checkpoint_every": 10,
            "train.unroll": 1,
            "watch.every": 5,
        }
        return from_mapping(base | (overrides or {}))

    return build


@pytest.fixture
def call(capsys):
    """(exit code, stdout, stderr) of `deltaflow ARGUMENTS`; anything raised but SystemExit is a failed test."""
    from train.cli import main

    def called(*arguments) -> tuple[int, str, str]:
        capsys.readouterr()
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as error:  # argparse
            code = error.code if isinstance(error.code, int) else 1
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return code, out, err

    return called


@pytest.fixture
def wording(request, tmp_path) -> Wording:
    """Compares the messages of a test with tests/messages.txt; of a test of its blocks (`block`), with that block."""
    params = request.node.callspec.params if hasattr(request.node, "callspec") else {}
    return Wording(params.get("block", request.node.nodeid), tmp_path)


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem):
    """A test that passes has provoked all messages that are recorded for it."""
    result = yield
    if "wording" in pyfuncitem.funcargs:
        pyfuncitem.funcargs["wording"].finish()
    return result


@pytest.fixture(scope="session")
def trained(corpus, tmp_path_factory):
    """A finished run of two variants of one shape, through the command line: (config, run directory of the first)."""
    from train.cli import main

    folder = tmp_path_factory.mktemp("trained")
    config = folder / "config.yaml"
    config.write_text(
        f"""
name: tiny
runs_dir: {folder}/runs
model: {{layers: 2, width: 16, heads: 2, init_std: 0.1}}
data: {{path: {corpus}, context: 8, batch: 4}}
optimizer: {{warmup: 5, lr: 1e-2, min_lr: 1e-3}}
train: {{steps: 40, eval_every: 20, eval_batches: 4, checkpoint_every: 20, steps_per_call: 5, unroll: 1}}
watch: {{every: 5}}
variants:
  with: {{}}
  without_skip: {{model.residual: none}}
""",
        encoding="utf-8",
    )
    with drawing(report=True, pictures=True):
        assert main(["train", str(config)]) == 0
    return config, folder / "runs" / "tiny" / "with"


@pytest.fixture(scope="session")
def probed(trained, tmp_path_factory):
    """The JSON of `probe --json` for with, without_skip and a third of another shape: post_ln, untied, no norms."""
    from train.cli import main

    file = tmp_path_factory.mktemp("probe") / "deep" / "p.json"
    more = "variants.bare={model.norm: none, model.positions: none, model.tied_head: false, model.residual: post_ln}"
    assert main(["probe", str(trained[0]), "--json", str(file), more]) == 0  # overrides may follow options
    return json.loads(file.read_text(encoding="utf-8"))
