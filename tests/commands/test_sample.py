"""`deltaflow sample`: its text and probabilities are the model's."""

import io
import json
import shutil
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from model.network import Network
from train.cli import main
from train.run.sample import Generator
from train.store.checkpoint import Checkpoints
from train.store.rundir import read_config


@pytest.fixture(scope="module")
def generator(trained) -> Generator:
    return Generator(trained[1])


def text(generator: Generator, seed: int, temperature: float = 0.8, top_k: int | None = None) -> str:
    return "".join(generator.text("the gra", 30, temperature, top_k, seed))


def test_it_prints_the_prompt_and_its_continuation(trained, generator, call):
    arguments = ["sample", trained[1], "--prompt", "the gra", "--tokens", "30", "--seed", "3"]
    assert call(*arguments) == (0, f"the gra{text(generator, 3)}\n", "")
    assert call(*arguments, "--top-k", "2", "--temperature", "1.5")[1] == f"the gra{text(generator, 3, 1.5, 2)}\n"
    assert call("sample", trained[1], "--prompt", "skip", "--tokens", "0") == (0, "skip\n", "")


def test_draws_depend_on_the_seed_alone_and_greedy_ones_on_none(generator):
    assert text(generator, 1) == text(generator, 1) != text(generator, 2)
    greedy = text(generator, 3, 0.0)
    assert greedy == text(generator, 1, top_k=1) == text(generator, 2, top_k=1) == text(generator, 3, 1e-30)
    for n in (0, 1, 29):  # the last is beyond the context of 8
        ((token, _),) = generator.likeliest("the gra" + greedy[:n], 1)
        assert token == repr(greedy[n])


def test_the_most_likely_tokens_are_printed_in_their_order(trained, generator, call):
    for count in (5, 1000):
        code, out, err = call("sample", trained[1], "--prompt", "flows do", "--top", count)
        title, columns, *rows = out.splitlines()
        assert (code, err, title, columns.split()) == (0, "", "after 'flows do'", ["token", "probability"])
        likeliest = [[token, f"{probability:.4f}"] for token, probability in generator.likeliest("flows do", count)]
        assert [row.rsplit(None, 1) for row in rows] == likeliest
        assert likeliest == sorted(likeliest, key=lambda row: row[1], reverse=True)
        assert len(rows) == min(count, 24)  # as many as the vocabulary has


@pytest.mark.parametrize("prompt", ["the", "unchanged norms"])  # shorter and longer than the context of 8
def test_probabilities_are_the_model_s_after_the_last_tokens(trained, generator, prompt):
    """The tokens alone, without padding, through the network with the weights of the newest checkpoint."""
    config, params = read_config(trained[1]), Checkpoints(trained[1]).params(40)
    tokens = generator.tokenizer.encode(prompt).astype(np.int32)[-8:]
    network = Network(config.model, generator.tokenizer.vocab_size, 8)
    logits = np.asarray(jax.jit(lambda p: network.apply(p, tokens[None])[0])(params), np.float64)[-1]
    expected = np.exp(logits - logits.max()) / np.sum(np.exp(logits - logits.max()))
    likeliest = generator.likeliest(prompt, 24)
    np.testing.assert_allclose([probability for _, probability in likeliest], np.sort(expected)[::-1], rtol=1e-5)
    assert likeliest[0][0] == generator.tokenizer.token_text(int(np.argmax(expected)))


@pytest.mark.parametrize("option", ["--temperature", "--top-k"])
def test_the_most_likely_tokens_are_of_the_model_alone(call, option, wording):
    code, out, err = call("sample", ".", "--top", "3", option, "1")
    assert (code, out, err.count("\n")) == (2, "", 1)
    wording(err, f"command line: {option}")


def test_a_checkpoint_is_not_taken_for_its_run(trained, call, wording):
    _, run = trained
    for inside in (run / "ckpt", next((run / "ckpt").iterdir())):
        code, out, err = call("sample", inside)
        assert (code, out, err.count("\n")) == (2, "", 1) and str(run) in err.removeprefix(f"deltaflow: {inside}: ")
        wording(err, inside)


@pytest.mark.parametrize("more", [(), ("--top", "3")])
def test_a_character_that_the_corpus_lacks_is_2_in_one_line(trained, call, more, wording):
    code, out, err = call("sample", trained[1], "--prompt", "the Σ", *more)
    assert (code, out, err.count("\n")) == (2, "", 1)
    wording(err)


def test_text_that_an_output_cannot_show_is_no_error(trained, tmp_path, monkeypatch, call):
    """The letters of this run are Greek: each is printed as a question mark."""
    run = Path(shutil.copytree(trained[1], tmp_path / "greek"))
    tokenizer = json.loads((run / "tokenizer.json").read_text(encoding="utf-8"))
    vocab = "".join(chr(ord(each) + 0x350) if each.isalpha() else each for each in tokenizer["vocab"])
    (run / "tokenizer.json").write_text(json.dumps(tokenizer | {"vocab": vocab}), encoding="utf-8")
    arguments = ["sample", str(run), "--prompt", "α ", "--tokens", "30"]
    _, text, _ = call(*arguments)
    shown = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(shown, encoding="ascii", write_through=True))
    assert main(arguments) == 0
    assert shown.getvalue() == text.encode("ascii", "replace") and not text[2:].isascii()
