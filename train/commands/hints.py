"""Hints for a command line without a command, and for options that do not exist: the words that were probably meant."""

import shlex
from collections.abc import Collection, Sequence
from pathlib import Path

from ..config.fields import FIELDS, SHORT, SPECIAL, naming, nearest, suggestions
from ..config.load import SHIPPED
from ..text import command

_MEANT = {
    "init": ("new", "create", "start", "config"),
    "train": ("run", "fit", "resume", "continue", "learn"),
    "sample": ("generate", "predict", "infer"),
    "compare": ("report", "diff", "plot", "show", "results"),
    "tensorboard": ("tb", "board", "serve"),
    "plan": ("dry", "dryrun", "estimate", "cost"),
    "devices": ("device", "info", "doctor", "gpu", "tpu"),
    "export": ("save", "convert"),
}


def without_command(words: Sequence[str], commands: Collection[str]) -> str:
    """The message for words of which the first is no command."""
    word, *rest = words
    if word == "help":
        meant = command(*(name for name in rest[:1] if name in commands), "--help")
    elif word == "version":
        meant = command("--version")
    elif "=" in word:
        meant = command("train", "CONFIG", *words)
    elif word.endswith((".yaml", ".yml")) or Path(word).is_file() or (SHIPPED / f"{word}.yaml").is_file():
        meant = command("train", *(each for each in words if each != "train"))
    elif Path(f"{word}.yaml").is_file():
        meant = command("train", f"{word}.yaml", *rest)
    elif Path(word).is_dir():
        meant = f"{command('compare', word)} or {command('tensorboard', word)}"
    else:
        name = next((name for name, others in _MEANT.items() if word.lower() in others), nearest(word, commands))
        if name is None and (shipped := nearest(word, [path.stem for path in SHIPPED.glob("*.yaml")])):
            name, rest = "train", [shipped, *rest]
        if name is None:
            return f"no command {word!r}; expected one of {', '.join(commands)}"
        meant = command(name, *rest)
    return f"no command {word!r}; did you mean: {meant}"


def unknown_option(option: str, following: Sequence[str], options: Collection[str], configurable: bool) -> str | None:
    """The message for an option that a command does not have; None where none comes to mind.

    Args:
        following: the words after it. options: those that the command has. configurable: it takes a config's keys.
    """
    if not option.startswith("-"):
        prompt = f"--prompt {shlex.quote(option)}"
        return f"unexpected {option!r}; did you mean {prompt}?" if "--prompt" in options else None
    option, _, value = option.partition("=")
    value = value or next((word for word in following[:1] if not word.startswith("-")), "")
    name = option.lstrip("-").replace("-", "_")
    meant = (name, *suggestions(name)) if configurable else ()
    keys = [key for key in meant if key in FIELDS or key in SHORT or key.partition(".")[0] in SPECIAL]
    if name in ("resume", "continue"):
        return f"{option} is no option; the same command as before resumes a run"
    if keys:
        return f"{option} is no option; a config key is set by key=value: {keys[0]}={value or 'VALUE'}"
    if configurable and (named := naming(name)):
        return f"{option} is no option; a config key is set by key=value: {named[0]}={name}"
    if configurable and "=" in value:
        return f"{option} is no option; a config key is set without one: {value}"
    if configurable and value.endswith((".yaml", ".yml")):
        return f"{option} is no option; the config is given without one: {value}"
    short = [other for other in options if len(option) == 2 and other[2:3] == option[1:]]
    near = short[0] if len(short) == 1 else nearest(option, options)
    return None if near is None else f"{option} is no option; did you mean {near}?"
