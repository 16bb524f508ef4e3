"""The command line: `deltaflow COMMAND ...`, also `python -m train`.

Exit codes: 0 done, 1 failure, 2 bad config or usage; after saving 129 SIGHUP, 130 SIGINT, 143 SIGTERM.
"""

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import NoReturn

from data import DataError
from model.rules import DeclarationError

from .device.process import tune
from .device.signals import Stop, Stopped, listening
from .errors import UserError, out_of_memory, refusal
from .text import command

# One module a command; only the one that is called is imported, so that `--help` and config errors come at once.
COMMANDS = {
    "train": "train the variants of a config; resumes by itself",
    "probe": "no training: one batch, forward and backward, where the gradient goes",
    "init": "a commented config to start from",
    "chain": "the chain rule, checked by measurement on this machine: predictions, measurements, whether they agree",
    "sample": "text from a trained run, or its next-token probabilities",
    "export": "the parameters of a run as safetensors with a JSON config, for other programs",
    "compare": "runs side by side: config differences, final figures with intervals over seeds, charts",
    "watch": "the report of runs in progress, written again every 30 s",
    "tensorboard": "TensorBoard over the runs, for this machine alone",
    "devices": "what JAX sees, versions, memory, measured matmul peak",
}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line and exit code 2."""
        self.exit(2, f"deltaflow: {message} (see {command(*self.prog.split()[1:], '--help')})\n")


def script() -> NoReturn:
    """Runs the command of a process of its own, and ends it."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # the shell closed it (>&-)
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))
    tune()
    try:
        code = main(hard=True)
    except KeyboardInterrupt:  # after the handlers were put back
        code = 130
    if code in (129, 130, 143):
        _leave(code)
    sys.exit(code)


def main(arguments: Sequence[str] | None = None, hard: bool = False) -> int:
    """Runs one command; returns its exit code. With `hard` a signal may end the process."""
    stop = Stop()
    try:
        with listening(stop, hard):
            parsed = _parse(sys.argv[1:] if arguments is None else arguments)
            parsed.stop = stop
            return parsed.run(parsed)
    except (UserError, DataError, DeclarationError) as error:
        print(f"deltaflow: {error}", file=sys.stderr)
        return error.exit_code if isinstance(error, UserError) else 2
    except BrokenPipeError:  # `deltaflow probe ... | head`
        sys.stderr.close()
        return 1
    except OSError as error:  # a file or folder that is not what it should be; what was saved before is kept
        where = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else ""
        print(f"deltaflow: {where or 'a file'}: {refusal(error, Path(where))}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as error:
        how = "stopped" if isinstance(error, Stopped) else "interrupted"
        print(f"deltaflow: {how}{f' during {stop.doing}' if stop.doing else ''}", file=sys.stderr)
        if hard:  # here, where the traceback keeps half-made objects alive, whose finalizers would complain
            _leave(stop.exit_code or 130)
        return stop.exit_code or 130
    except Exception as error:
        if not out_of_memory(error):
            raise
        advice = "lower model.width, model.layers, data.batch or data.context"
        print(f"deltaflow: not enough memory for this model and its batches; {advice}", file=sys.stderr)
        return 1


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The arguments of a command, and its function as `run`."""
    parser = _Parser(prog="deltaflow", description="Train tiny transformers and see where the gradient goes.")
    parser.add_argument("--version", action="version", version=f"deltaflow {version('deltaflow')}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    command = next((word for word in arguments if not word.startswith("-")), None)
    if command and command not in COMMANDS and command == arguments[0]:
        from .config.fields import did_you_mean

        hint = did_you_mean(command, COMMANDS) or f"; expected one of {', '.join(COMMANDS)}"
        parser.error(f"no command {command!r}{hint}")
    for name, summary in COMMANDS.items():
        sub = commands.add_parser(name, help=summary, description=summary)
        if name == command:
            module = importlib.import_module(f".commands.{name}", __package__)
            module.arguments(sub)
            sub.set_defaults(run=module.run)
    parsed, rest = parser.parse_known_args(arguments)
    if unknown := [word for word in rest if not hasattr(parsed, "overrides") or word.startswith("-")]:
        from .config.fields import FIELDS, SHORT, suggestions

        option, _, value = unknown[0].partition("=")
        name = option.lstrip("-").replace("-", "_")
        keys = [key for key in (name, *suggestions(name)) if key in FIELDS or key in SHORT]
        if hasattr(parsed, "overrides") and keys:
            following = arguments[arguments.index(unknown[0]) + 1 :]
            value = value or next((word for word in following[:1] if not word.startswith("-")), "VALUE")
            setting = f"a config key is set by key=value: {keys[0]}={value}"
            commands.choices[parsed.command].error(f"{option} is no option; {setting}")
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    if rest:  # argparse takes no more positional arguments once it has seen an option
        parsed.overrides = [*parsed.overrides, *rest]
    return parsed


def _leave(code: int) -> NoReturn:
    """Ends the process without waiting for a compilation in progress."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # closed, or a pipe without a reader
            stream.flush()
    os._exit(code)
