"""Names of runs, variants and sweep values that would lead out of the folder that runs go to."""

import os
import random
from collections.abc import Iterator
from pathlib import Path

from scripts.torture.audit import Trial
from train.config.load import ConfigError, from_mapping
from train.errors import UserError
from train.store.rundir import claim, directory_of

TRAVERSALS = (
    *("..", "../x", "../../x", "a/../../x", "/tmp/x", "//x", "~", "~/x", "~root", ".", "./x", "x/", "x/.", "", " "),
    *("x\0y", "\0", "x\ny", "x\x1b[2J", "a" * 121, "a" * 5000, "..\\x", "C:\\x", "\\\\host\\x", "x:y", "$HOME", "`id`"),
    *(
        "$(touch x)",
        ";id",
        "|id",
        "-rf",
        "--help",
        "\u202ex",
        "．．／x",
        "%2e%2e%2f",
        "x*",
        "?",
        "[a]",
        "{a}",
        "<x>",
        "a..b",
    ),
    *("...", ".hidden", "ＮＵＬ", "\ud800", "é", "a/b", "a\\b", "x\t", "\u2025", "..;/", "..%00", "%00", "file:///x"),
)


def names(root: Path, draw: random.Random, trials: int) -> Iterator[Trial]:
    """Names of runs, variants and sweep values from a list and from bits of it, to the making of their folder."""
    bits = ("..", "/", "\\", ".", "~", "\0", "a", "=", ",", "-", " ", "%", "\n", "\u202e", os.sep * 2)
    for number in range(trials):
        text = TRAVERSALS[number] if number < len(TRAVERSALS) else "".join(draw.choices(bits, k=draw.randint(1, 8)))
        kind = ("name", "variant", "label")[number % 3 if number >= len(TRAVERSALS) else 0]
        yield f"{kind} {text!r:.40}", lambda text=text, kind=kind: _claimed(root, text, kind)
        if number < len(TRAVERSALS):
            for kind in ("variant", "label"):
                yield f"{kind} {text!r:.40}", lambda text=text, kind=kind: _claimed(root, text, kind)


def _claimed(root: Path, text: str, kind: str) -> str:
    """Makes the run directories of an experiment with such a name, if it is one."""
    keys: dict[str, object] = {"name": "x", "runs_dir": str(root / "runs")}
    if kind == "name":
        keys["name"] = text
    elif kind == "variant":
        keys["variants"] = {text: {}}
    else:  # part of a sweep point's name
        keys["sweep"] = {"data.path": [text or "x", "y"]}
    try:
        experiment = from_mapping(keys)
    except ConfigError as error:
        return "" if all(line.isprintable() for line in str(error).splitlines()) else f"said {str(error)[:80]!r}"
    except BaseException as error:
        return f"{type(error).__name__}: {str(error)[:80]!r}"
    for variant in experiment.variants:
        try:
            if directory_of(variant).resolve().parent.parent != root / "runs":
                return f"led to {str(directory_of(variant))!r:.80}"
            claim(variant, rewrite=True)
        except UserError as error:
            return "" if "\n" not in str(error) else f"said {str(error)[:80]!r}"
        except BaseException as error:
            return f"{type(error).__name__}: {str(error)[:80]!r}"
    return ""
