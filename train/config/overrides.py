"""Overrides of a command line, `key=value`, and the words that a shell has made of one."""

import re
import shlex
from collections.abc import Sequence

from .fields import FIELDS, SHORT, SPECIAL, suggestions
from .settings import COMMAND_LINE, key_problems, tree
from .yaml import Problem, clean, read, show

# A key, and its value after an equals sign, a colon or a blank.
_WRITTEN = re.compile(r"([^\s=:]+)(?:\s*[=:]\s*|\s+)(\S.*)", re.DOTALL)


def assignments(words: Sequence[str], problems: list[Problem]) -> list[tuple[str, str]]:
    """The key and the value of each override; words that are none go to `problems`, those of one setting together."""
    settings: list[list[str]] = []
    for word in words:
        if _assigns(word) or word in FIELDS or word in SHORT or not settings:
            settings.append([word])
        else:
            settings[-1].append(word)
    whole = []
    for written in settings:
        text = " ".join(written)
        if len(written) == 1 and _assigns(text):
            key, _, value = text.partition("=")
            whole.append((key.strip(), value))
        else:
            problems.append(_misspelt(text))
    return whole


def _assigns(word: str) -> bool:
    key, equals, _ = word.partition("=")
    return bool(equals) and all(part.strip() == part != "" for part in key.strip().split("."))


def _misspelt(text: str) -> Problem:
    """The problem of a text that is not one `key=value`, with the one that is meant as far as there is one."""
    if match := _WRITTEN.fullmatch(text):
        key, value = match.groups()
        special = key.partition(".")[0] in SPECIAL and "" not in key.split(".")
        meant = key if key in FIELDS or key in SHORT or special else next(iter(suggestions(key)), None)
        node = read(value, COMMAND_LINE, unreadable := [], key)
        if meant and not unreadable and not (meant in FIELDS and key_problems(tree([(meant, node)]))):
            right = shlex.quote(f"{meant}={clean(value, 200)}")
            if _assigns(text) and not re.search(r" =|= ", text):
                return Problem(COMMAND_LINE, key, f"the shell splits it at its blanks; put quotes around it: {right}")
            return Problem(COMMAND_LINE, "", f"expected key=value as one word, {right}, got {show(text)}")
    more = "; a command takes one config" if text.endswith((".yaml", ".yml")) else ""
    return Problem(COMMAND_LINE, "", f"expected key=value, such as optimizer.lr=3e-4, got {show(text)}{more}")
