"""The command line: `deltaflow COMMAND ...`, also `python -m train`.

Exit codes: 0 done, 1 failure, 2 something that was given cannot be used (train.errors); after saving 129 SIGHUP, 130
SIGINT, 143 SIGTERM.
"""

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
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
    "plan": "no training: mesh, memory, work and bounds on a step, on chips that need not be here",
    "init": "a commented config to start from",
    "coordcheck": "activations and their changes at growing width and depth: does one learning rate fit all of them",
    "chain": "the chain rule, checked by measurement on this machine: predictions, measurements, whether they agree",
    "sample": "text from a trained run, or its next-token probabilities",
    "export": "the parameters of a run as safetensors with a JSON config, for other programs",
    "compare": "runs side by side: config differences, final figures with intervals over seeds, charts",
    "watch": "the report of runs in progress, written again every 30 s",
    "tensorboard": "TensorBoard over the runs, for this machine alone",
    "devices": "what JAX sees, versions, memory, measured matmul peak",
}
EXAMPLES = {
    "train": "quickstart optimizer.lr=3e-4",
    "probe": "quickstart",
    "plan": "quickstart mesh.fsdp=2 --devices v5e:2x4",
    "init": "mine",
    "coordcheck": "quickstart 'variants={}' model.base_width=64 --only width",
    "sample": "runs/quickstart/with --prompt 'The '",
    "export": "runs/quickstart/with --to with.safetensors",
    "compare": "runs/quickstart runs/mine --html",
    "watch": "runs/quickstart",
}
FIRST = {  # commands to begin with
    ("probe", "quickstart"): "10 seconds: where the gradient goes, without training",
    ("train", "quickstart"): "2 minutes: the same network with its skips and without",
    ("init",): "a config of your own to edit: mine.yaml",
}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line and exit code 2."""
        name = self.prog.partition(" ")[2]
        see = f"see {command(*name.split(), '--help')}"
        if name in EXAMPLES and message.startswith("the following arguments are required"):
            see = f"for example: {command(name)} {EXAMPLES[name]}"
        self.exit(2, f"deltaflow: {message} ({see})\n")


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
        return getattr(error, "exit_code", UserError.exit_code)
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
    """The arguments of a command, and its function as `run`. Raises UserError with a hint for what is no command."""
    text, about = argparse.RawDescriptionHelpFormatter, "Train tiny transformers and see where the gradient goes."
    first = {command(*words): meaning for words, meaning in FIRST.items()}
    width = max(map(len, first))
    rows = (f"  {words:<{width}}  # {meaning}" for words, meaning in first.items())
    epilog = "\n".join(("to begin with:", *rows))
    parser = _Parser(prog="deltaflow", description=about, epilog=epilog, formatter_class=text)
    number = "(not installed)"  # a clone, or a copy in another package
    with suppress(PackageNotFoundError):
        number = version("deltaflow")
    parser.add_argument("--version", action="version", version=f"deltaflow {number}")
    parser.set_defaults(run=lambda _: parser.print_help() or 0)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    name = next((word for word in arguments if not word.startswith("-")), None)
    if name is not None and name not in COMMANDS:
        from .commands.hints import without_command

        raise UserError(without_command(arguments[arguments.index(name) :], COMMANDS))
    for each, summary in COMMANDS.items():
        example = f"example:\n  {command(each)} {EXAMPLES[each]}" if each in EXAMPLES else None
        sub = commands.add_parser(each, help=summary, description=summary, epilog=example, formatter_class=text)
        if each == name:
            module = importlib.import_module(f".commands.{name}", __package__)
            module.arguments(sub)
            sub.set_defaults(run=module.run)
    parsed, rest = parser.parse_known_args(arguments)
    if unknown := [word for word in rest if not hasattr(parsed, "overrides") or word.startswith("-")]:
        from .commands.hints import unknown_option

        sub = parser if name is None else commands.choices[name]
        following = arguments[arguments.index(unknown[0]) + 1 :]
        message = unknown_option(unknown[0], following, [*sub._option_string_actions], hasattr(parsed, "overrides"))
        sub.error(message or f"unrecognized arguments: {' '.join(unknown)}")
    if rest:  # argparse takes no more positional arguments once it has seen an option
        parsed.overrides = [*parsed.overrides, *rest]
    return parsed


def _leave(code: int) -> NoReturn:
    """Ends the process without waiting for a compilation in progress."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # closed, or a pipe without a reader
            stream.flush()
    os._exit(code)
