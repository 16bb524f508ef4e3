"""The command line: `deltaflow COMMAND ...`, also `python -m train`.

Exit codes: 0 done, 1 failure, 2 bad config or usage; after saving 129 SIGHUP, 130 SIGINT, 143 SIGTERM.
"""

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import NoReturn

from .device.process import tune
from .device.signals import Stop, Stopped, listening

# One module a command; only the one that is called is imported, so that `--help` and config errors come at once.
COMMANDS = {
    "train": "train the variants of a config; resumes by itself",
    "probe": "no training: one batch, forward and backward, where the gradient goes",
    "chain": "the chain rule, checked by measurement on this machine: predictions, measurements, whether they agree",
    "sample": "text from a trained run, or its next-token probabilities",
    "compare": "runs side by side: config differences, final figures with intervals over seeds, charts",
    "tensorboard": "TensorBoard over the runs, for this machine alone",
    "devices": "what JAX sees, versions, memory, measured matmul peak",
}

# What a signal ended at once, to the end of the process: let go, half an event loop and coroutines that nobody awaits
# would complain.
_CUT_SHORT: list[KeyboardInterrupt] = []


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line and exit code 2."""
        self.exit(2, f"deltaflow: {message} (see {self.prog} --help)\n")


def script() -> NoReturn:
    """The whole life of a process: `main`, and its exit code."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # the shell closed it (>&-)
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))
    tune()
    try:
        code = main(hard=True)
    except KeyboardInterrupt:  # after the handlers were put back
        code = 130
    if code in (129, 130, 143):  # a compilation in progress would be waited for, and there is nothing more to do
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except (OSError, ValueError):  # closed, or a pipe that nobody reads
                pass
        os._exit(code)
    sys.exit(code)


def main(arguments: Sequence[str] | None = None, hard: bool = False) -> int:
    """Runs one command; returns its exit code. `hard`: the process is ended where a signal gets no other answer."""
    stop = Stop()
    try:
        with listening(stop, hard):
            return _run(arguments, stop)
    except KeyboardInterrupt as error:  # also Stopped, in which nothing is lost
        if hard:
            _CUT_SHORT.append(error)
        how = "stopped" if isinstance(error, Stopped) else "interrupted"
        print(f"deltaflow: {how}{f' during {stop.doing}' if stop.doing else ''}", file=sys.stderr)
        return stop.exit_code or 130


def _run(arguments: Sequence[str] | None, stop: Stop) -> int:
    parser = _Parser(prog="deltaflow", description="Train tiny transformers and see where the gradient goes.")
    parser.add_argument("--version", action="version", version=f"deltaflow {version('deltaflow')}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    argv = list(sys.argv[1:] if arguments is None else arguments)
    chosen = next((word for word in argv if not word.startswith("-")), None)
    for name, summary in COMMANDS.items():
        sub = commands.add_parser(name, help=summary, description=summary)
        if name == chosen:
            module = importlib.import_module(f"train.commands.{name}")
            module.arguments(sub)
            sub.set_defaults(run=module.run)
    parsed, rest = parser.parse_known_args(argv)
    overridable = hasattr(parsed, "overrides")
    if unknown := [word for word in rest if not overridable or word.startswith("-")]:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    if rest:  # argparse takes no more positional arguments once it has seen an option
        parsed.overrides = [*parsed.overrides, *rest]
    parsed.stop = stop
    return _guarded(parsed)


def _guarded(parsed: argparse.Namespace) -> int:
    from data.errors import DataError

    from .disk import refusal
    from .errors import UserError, out_of_memory

    try:
        return parsed.run(parsed)
    except (UserError, DataError) as error:
        print(f"deltaflow: {error}", file=sys.stderr)
        return error.exit_code if isinstance(error, UserError) else 2
    except BrokenPipeError:  # `deltaflow probe ... | head`
        sys.stderr.close()
        return 1
    except OSError as error:  # a file or folder that is not what it should be; what was saved before is kept
        where = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else ""
        print(f"deltaflow: {where or 'a file'}: {refusal(error, Path(where))}", file=sys.stderr)
        return 1
    except Exception as error:
        if not out_of_memory(error):
            raise
        print(
            "deltaflow: not enough memory for this model and its batches; lower model.width, model.layers, data.batch "
            "or data.context",
            file=sys.stderr,
        )
        return 1


if __name__ == "__main__":
    script()
