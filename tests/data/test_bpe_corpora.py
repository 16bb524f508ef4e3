"""Corpora in byte-pair encoding: their split, their cache, and runs on them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from test_bpe import LOW

from data.bpe import BpeTokenizer, learn
from data.tokenizer import from_json
from sources import PROSE, ROOT, change_after, opened, refused, write
from train.cli import main
from train.config.load import load
from train.device.programs import grouped
from train.disk import write_json
from train.errors import UserError
from train.run.experiment import data_key, open_all
from train.store.rundir import data_record

package = pytest.importorskip("tokenizers")


def opened_bpe(path: str = "a.txt", **config):
    return opened(**{"path": path, "tokenizer": "bpe", "context": 4} | config)


def merges(one: BpeTokenizer) -> tuple[str, ...]:
    return tuple(" ".join(pair) for pair in one.data["model"]["merges"])


@pytest.mark.parametrize("placement", ["device", "host"])
def test_the_split_is_at_the_character_where_char_has_it(placement):
    write("a.txt", "\ufeff" + PROSE)
    data = opened_bpe(val_fraction=0.3, placement=placement)
    char = opened_bpe(val_fraction=0.3, tokenizer="char")
    for ours, theirs in ((data.train, char.train), (data.val, char.val)):
        assert data.tokenizer.decode(ours) == char.tokenizer.decode(theirs)
        assert isinstance(ours, np.memmap) == (placement == "host")
    assert (data.name, data.sha256) == (char.name, char.sha256)
    assert data.spec.vocab_size == data.spec.outputs == data.vocab_size
    shown = f"{len(char.val) / len(data.val):.3g} characters a held-out token"
    assert f"{len(data.train):,} + {len(data.val):,} held out" in data.details and shown in data.details


def test_held_out_text_has_no_say():
    training = ("low lower lowest newer wider " * 50)[:1200]
    tails = [("zebra zoo quiz " * 50)[:400], ("quick dog zero " * 50)[:400]]
    learnt = []
    for tail in tails:
        data = opened_bpe(write("a.txt", training + tail), val_fraction=0.25)
        assert data.tokenizer.decode(data.val) == tail
        learnt.append(merges(data.tokenizer))
    assert learnt[0] == learnt[1] == merges(learn([training], 512))
    assert not any("z" in merge or "q" in merge for merge in learnt[0])
    assert any("z" in merge for merge in merges(opened_bpe(write("a.txt", tails[0] + training)).tokenizer))


@pytest.mark.slow
def test_a_corpus_of_several_reads_streams_and_pieces_is_encoded_as_a_whole():
    write("a.txt", whole := PROSE * 350)
    cut = len(whole) * 9 // 10
    assert cut > 2**20
    one = learn([whole[:cut]], 400)
    expected = [one.library.encode(text).ids for text in (whole[:cut], whole[cut:])]
    for placement in ("device", "host"):
        data = opened_bpe(vocab_size=400, placement=placement)
        assert data.tokenizer == one
        np.testing.assert_array_equal(data.train, expected[0])
        np.testing.assert_array_equal(data.val, expected[1])


def test_fewer_tokens_than_asked_for_are_what_there_is():
    write("a.txt", "low low low lower lowest" + "!" * 60)
    data = opened_bpe(context=1, val_fraction=0.7, vocab_size=999)
    assert data.tokenizer == LOW and data.spec.vocab_size == data.spec.outputs == 260
    assert "vocabulary 260" in data.details and "data.vocab_size 999 is out of reach" in data.details
    assert "out of reach" not in opened_bpe(context=1, val_fraction=0.7, vocab_size=260).details


@pytest.mark.slow
def test_two_processes_learn_the_same():
    """Hashes are seeded differently in each, and counting is shared by threads."""
    program = (
        "import sys, numpy; from data.bpe import learn; draw = numpy.random.default_rng(0)\n"
        "words = [''.join(draw.choice(list('abcdeé語'), draw.integers(1, 9))) for _ in range(400)]  # with many ties\n"
        "print(learn([' '.join(draw.choice(words, 20_000))], 700).data)"
    )
    outputs = set()
    for seed in ("1", "4"):
        env = os.environ | {"PYTHONHASHSEED": seed, "RAYON_NUM_THREADS": seed, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-c", program]
        outputs.add(subprocess.run(command, capture_output=True, text=True, env=env, check=True).stdout)
    assert len(outputs) == 1 and len(outputs.pop()) > 5000


# The cache


def test_merges_are_learnt_once_and_the_cache_is_mended(cache):
    write("a.txt", PROSE)
    expected = opened_bpe()
    (file,) = (cache / "tokenizers").iterdir()  # and no temporary file stays
    good, made = file.read_bytes(), file.stat().st_ino
    other = json.dumps(json.loads(good) | {"tokenizer": {"kind": "byte"}}).encode()
    for content in (good, b"", good[:-9], b"[]", b"{}", b"\xff", other, b"[" * 99_999):
        if content != good:
            file.write_bytes(content)
        actual = opened_bpe()
        assert (actual.tokenizer, actual.details) == (expected.tokenizer, expected.details)
        np.testing.assert_array_equal(actual.train, expected.train)
        assert file.read_bytes() == good and (content != good or file.stat().st_ino == made)


def test_all_that_matters_has_a_cache_of_its_own(cache, monkeypatch):
    write("a.txt", PROSE)
    opened_bpe()
    opened_bpe(context=9, placement="host")  # says nothing about merges
    assert len(list((cache / "tokenizers").iterdir())) == len(list((cache / "tokens").iterdir())) == 1
    opened_bpe(vocab_size=300)
    opened_bpe(val_fraction=0.2)
    write("a.txt", PROSE.replace("dog", "cat"))
    opened_bpe()
    monkeypatch.setattr("tokenizers.__version__", "0.0.0")
    opened_bpe()
    assert len(list((cache / "tokenizers").iterdir())) == 5
    write("a.txt", "low " * 500)
    for fraction, held_out in ((0.5, 1000), (0.502, 1004)):  # the same merges and number of tokens
        data = opened_bpe(val_fraction=fraction, placement="host")
        assert data.tokenizer.decode(data.val) == "low " * (held_out // 4)
        assert merges(data.tokenizer) == ("l o", "lo w", "Ġ low") and len(data.train) + len(data.val) == 502
    assert len(list((cache / "tokens").iterdir())) == 3


def test_a_cache_that_cannot_be_written_is_done_without(cache, wording):
    write(cache, "a file where a folder should be")
    assert opened_bpe(write("a.txt", PROSE)).vocab_size > 300
    wording(refused(path="a.txt", tokenizer="bpe", context=4, placement="host"))


# What can't be


def test_corpora_that_are_too_short(wording):
    for content, context in (("abcdefgh", 64), ("a", 4), ("low " * 250, 26)):
        wording(refused(path=write("a.txt", content), tokenizer="bpe", context=context), "data.path")
    assert len(opened_bpe(context=25).val) == 26


@pytest.mark.parametrize("reading", [1, 3], ids=["before merges", "before tokens"])
@pytest.mark.parametrize("content", [PROSE[:-90], PROSE * 2, PROSE.replace("dog", "cat"), b"\xff"])
def test_a_file_that_changes_while_it_is_read_is_refused(cache, monkeypatch, reading, content, wording):
    write("a.txt", PROSE)
    change_after(monkeypatch, reading, content)
    wording(refused(path="a.txt", tokenizer="bpe", context=4), "data.path")
    assert reading == 3 or not (cache / "tokenizers").exists()


# A run


CONFIG = """
name: merged
runs_dir: {folder}/runs
model: {{layers: 1, width: 16, heads: 2, init_std: 0.1}}
data: {{path: {folder}/prose.txt, tokenizer: bpe, vocab_size: 280, context: 8, batch: 4}}
optimizer: {{warmup: 5, lr: 1e-2}}
train: {{steps: 40, eval_every: 20, eval_batches: 4, checkpoint_every: 20, steps_per_call: 10, unroll: 1}}
watch: {{every: 0}}
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """The directory of a finished run; its config and corpus are three folders up."""
    folder = tmp_path_factory.mktemp("bpe")
    write(folder / "prose.txt", PROSE)
    write(folder / "c.yaml", CONFIG.format(folder=folder))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DELTAFLOW_CACHE", str(folder / "cache"))
        assert main(["train", str(folder / "c.yaml")]) == 0
    return folder / "runs" / "merged" / "main"


def test_a_run_learns_and_keeps_its_tokenizer(run):
    stored = from_json(json.loads((run / "tokenizer.json").read_text(encoding="utf-8")))
    assert stored.vocab_size == 280
    assert stored == opened_bpe(str(run.parents[2] / "prose.txt"), vocab_size=280).tokenizer
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    assert summary["loss_first"] == pytest.approx(np.log(280), abs=1)
    assert summary["loss_train"] < summary["loss_first"] - 1


def test_each_vocabulary_has_data_and_a_program_of_its_own(run):
    keys = ["variants={small: {}, large: {data.vocab_size: 300}, other: {seed: 1}}"]
    variants = load(run.parents[2] / "c.yaml", keys).variants
    assert [[one.name for one in group] for group in grouped(variants)] == [["small", "other"], ["large"]]
    sources = open_all(variants)
    assert [sources[data_key(one.config)].spec.vocab_size for one in variants] == [280, 300, 280]


def test_text_is_sampled_without_the_corpus(run, cache, capsys, wording):
    elsewhere = (run.parents[2] / "prose.txt").rename("elsewhere.txt")
    prompt = "\nA quick 語😀 never seen, ﬁ\u0301"
    assert main(["sample", str(run), "--prompt", prompt, "--tokens", "20"]) == 0
    assert capsys.readouterr().out.startswith(prompt)
    # Hot enough, every byte comes; pieces go out once a character is whole, and the last one as it is.
    assert main(["sample", str(run), "--tokens", "300", "--temperature", "100"]) == 0
    out = capsys.readouterr().out
    assert "\ufffd" in out and len(out) > 200
    assert main(["sample", str(run), "--prompt", "The", "--top", "999"]) == 0
    shown = [line.split() for line in capsys.readouterr().out.splitlines()[2:]]
    assert len(shown) == 280 and sum(float(row[-1]) for row in shown) == pytest.approx(1, abs=0.02)
    assert {"' quick'", "'\\n'", "'T'", "0xE7"} <= {" ".join(row[:-1]) for row in shown}
    assert main(["sample", str(run), "--prompt", "a\udc80"]) == 2
    wording(capsys.readouterr().err)
    assert not cache.exists()
    elsewhere.rename(run.parents[2] / "prose.txt")


def test_without_the_package_it_says_what_to_install(run, monkeypatch, capsys, wording):
    path = write("a.txt", PROSE)
    config = write("c.yaml", f"name: a\nruns_dir: runs\ndata: {{path: {path}, tokenizer: bpe}}\n")
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    for command, argument, place in (
        ("train", config, "c.yaml:3: "),
        ("probe", config, "c.yaml:3: "),
        ("sample", run, ""),
    ):
        assert main([command, str(argument)]) == 2
        out, err = capsys.readouterr()
        assert (out, err.count("\n")) == ("", 1)
        wording(err, f"{place}data.tokenizer")
    assert sorted(file.name for file in Path().iterdir()) == ["a.txt", "c.yaml"]


def test_a_tokenizer_of_your_own_may_say_tuples(tmp_path, wording):
    """They come back from JSON as lists, which is no other tokenizer."""
    files, _ = data_record(tmp_path, "00", "mine", {"kind": "mine", "merges": ("a b", "b c")})
    for path, content in files.items():
        write_json(path, content)
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    assert data_record(tmp_path, "00", "mine", {"kind": "mine", "merges": ("a b", "b c")}) == ({}, None)
    with wording.raises(UserError, tmp_path):
        data_record(tmp_path, "00", "mine", {"kind": "mine", "merges": ("b c", "a b")})


def test_a_run_goes_on_with_its_own_merges_or_not_at_all(run, monkeypatch, capsys, wording):
    command = ["train", str(run.parents[2] / "c.yaml")]
    monkeypatch.setenv("DELTAFLOW_CACHE", str(run.parents[2] / "cache"))
    learnt = {file: file.stat().st_mtime_ns for file in (run.parents[2] / "cache" / "tokenizers").iterdir()}
    assert main(command) == 0 and "finished before" in "".join(capsys.readouterr())
    stored = run / "tokenizer.json"
    good = stored.read_text(encoding="utf-8")
    other = json.loads(good)
    other["model"]["merges"].pop()
    write(stored, json.dumps(other))
    assert main(command) == 2
    wording(capsys.readouterr().err.splitlines()[-1], run)
    write(stored, good)
    assert main(command) == 0 and learnt == {file: file.stat().st_mtime_ns for file in learnt}
