"""`deltaflow sample RUN --prompt TEXT`."""

import argparse
import sys
from pathlib import Path

from ..config.load import ConfigError, Problem
from ..config.yaml import Place
from .types import integer, prompt
from .types import temperature as number_of


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_directory", metavar="RUN", help="a run directory, e.g. runs/quickstart/with")
    parser.add_argument("--prompt", type=prompt, default="\n", help="text to go on from (default: a line break)")
    parser.add_argument("--tokens", type=integer(0), default=200, help="how many to generate (default 200)")
    parser.add_argument("--temperature", type=number_of, help="0 = always the most likely (default 0.8)")
    parser.add_argument("--top-k", type=integer(1), metavar="K", help="draw from the k most likely only")
    parser.add_argument("--seed", type=integer(0, 2**32 - 1), default=0)
    parser.add_argument("--top", type=integer(1), metavar="N", help="no text: the N most likely next tokens")


def run(parsed: argparse.Namespace) -> int:
    """Prints the prompt and what follows, or a table of probabilities. Raises DataError, UserError, ConfigError."""
    from ..log.console import Console, printable
    from ..run.sample import Generator

    if parsed.top is not None:
        for option, given in (("--temperature", parsed.temperature), ("--top-k", parsed.top_k)):
            if given is not None:
                wrong = "not with --top, whose probabilities are the model's own"
                raise ConfigError([Problem(Place("command line"), option, wrong)])
    generator = Generator(Path(parsed.run_directory))
    if parsed.top is not None:
        likely = generator.likeliest(parsed.prompt, parsed.top)
        rows = [[token, f"{probability:.4f}"] for token, probability in likely]
        Console().table(f"after {parsed.prompt!r}", ["token", "probability"], rows)
        return 0
    generator.tokenizer.encode(parsed.prompt)  # refuses what it does not know before anything is printed
    print(printable(parsed.prompt, sys.stdout), end="", flush=True)
    temperature = 0.8 if parsed.temperature is None else parsed.temperature
    for piece in generator.text(parsed.prompt, parsed.tokens, temperature, parsed.top_k, parsed.seed):
        print(printable(piece, sys.stdout), end="", flush=True)
    print()
    return 0
