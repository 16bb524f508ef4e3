"""`deltaflow sample RUN --prompt TEXT`."""

import argparse
import sys
from pathlib import Path

from ..errors import UserError
from .types import integer, prompt
from .types import temperature as number_of


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_directory", metavar="RUN", help="a run directory, e.g. runs/quickstart/with")
    parser.add_argument("--prompt", type=prompt, default="\n", help="text to continue (default: a line break)")
    parser.add_argument("--tokens", type=integer(0), default=200, help="number of tokens to generate (default 200)")
    parser.add_argument("--temperature", type=number_of, help="0: always the most likely token (default 0.8)")
    parser.add_argument("--top-k", type=integer(1), metavar="K", help="sample from the K most likely tokens alone")
    parser.add_argument("--seed", type=integer(0, 2**32 - 1), default=0)
    parser.add_argument(
        "--top", type=integer(1), metavar="N", help="print the N most likely next tokens in place of text"
    )


def run(parsed: argparse.Namespace) -> int:
    """Prints the prompt and its continuation, or a table of probabilities. Raises DataError, UserError."""
    from ..log.console import Console, printable
    from ..run.sample import Generator

    if parsed.top is not None:
        for option, value in (("--temperature", parsed.temperature), ("--top-k", parsed.top_k)):
            if value is not None:
                wrong = "not with --top, whose probabilities are the model's own"
                raise UserError(f"{option}: {wrong}", "command line")
    generator = Generator(Path(parsed.run_directory))
    if parsed.top is not None:
        likely = generator.likeliest(parsed.prompt, parsed.top)
        rows = [[token, f"{probability:.4f}"] for token, probability in likely]
        Console().table(f"after {parsed.prompt!r}", ["token", "probability"], rows)
        return 0
    generator.tokenizer.encode(parsed.prompt)  # refuses unknown characters before anything is printed
    print(printable(parsed.prompt, sys.stdout), end="", flush=True)
    temperature = 0.8 if parsed.temperature is None else parsed.temperature
    for piece in generator.text(parsed.prompt, parsed.tokens, temperature, parsed.top_k, parsed.seed):
        print(printable(piece, sys.stdout), end="", flush=True)
    print()
    return 0
