"""`deltaflow init [NAME]`."""

import argparse
from pathlib import Path
from string import Template

from ..config.load import from_mapping
from ..config.yaml import dump
from ..errors import UserError
from ..text import command

TEMPLATE = """\
# The same transformer with residual connections and without: about a minute on 2 CPU cores.
#
#   deltaflow train $name.yaml --dry-run    # parameters, memory, expected time
#   deltaflow train $name.yaml              # after an interruption the same command goes on
#   deltaflow train $name.yaml name=wider model.width=128 'sweep.seed=[0, 1, 2]'
#
# The keys that are changed first; every other one has a default (docs/config.md). Lines of the form `# key: value` are
# alternatives.
name: $key  # runs go to runs/$name/VARIANT; another model or other data needs another name
seed: 0  # of the initial weights and the batches

data:
  corpus: python-docs  # Python's own manual; shakespeare is downloaded
  # path: texts/*.txt  # in place of corpus: a text of yours, a folder, or a pattern
  tokenizer: char  # byte, or bpe with vocab_size
  context: 64  # tokens of a window
  batch: 8  # windows of a step

model:
  layers: 8  # blocks; deeper models show more
  width: 64  # of the residual stream, a multiple of heads
  heads: 4
  norm: rms  # layer, none
  residual: pre_ln  # none, post_ln, rezero, deepnorm and others: the end of docs/config.md
  init: xavier
  init_std: 0.1  # of the embeddings

optimizer:
  name: adamw  # sgd, momentum, lion, muon and others
  lr: 1e-3  # at the end of warmup
  min_lr: 1e-4  # at the end of the schedule
  schedule: cosine  # constant, linear, wsd and others
  warmup: 50  # steps

train:
  steps: 500
  eval_every: 100  # steps between held-out losses
  checkpoint_every: 250

watch:
  every: 10  # steps between measurements of the gradient at every depth
  # instruments: {attention: 100, sharpness: 100}  # more of them: docs/instruments.md

variants:  # a run each, on the same batches; the keys that differ
  with: {}
  without_skip: {model.residual: none}
  # post_ln: {model.residual: post_ln}

# sweep: {seed: [0, 1, 2]}  # every variant with every value; several keys make a grid
# expect: {with: {loss/val: [2.2, 3.0], verdict: healthy}}  # promises, checked after the training
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "name", nargs="?", default="mine", metavar="NAME", help="of the experiment and its file (default: mine)"
    )


def run(parsed: argparse.Namespace) -> int:
    """Writes NAME.yaml into the current folder, and prints the next commands. Raises ConfigError, UserError."""
    name = parsed.name.removesuffix(".yaml").removesuffix(".yml")
    from_mapping({"name": name}, "command line")  # a name that runs can have
    path = Path(f"{name}.yaml")
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(Template(TEMPLATE).substitute(name=name, key=dump(name)))
    except FileExistsError:
        another = command("init", f"{name}2")
        raise UserError(f"{path}: exists, and is left as it is; for a file of another name: {another}") from None
    print(f"written: {path}; edit it, then")
    print(f"  {command('train', path, '--dry-run')}   # parameters, memory, expected time")
    print(f"  {command('train', path)}")
    return 0
