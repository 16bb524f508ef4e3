"""Writes references from the code that owns them: docs/config.md, every config key and residual rule; docs/commands.md.

python scripts/config_reference.py docs/config.md docs/commands.md
"""

import argparse
import importlib
import sys
from pathlib import Path

from pydantic.fields import FieldInfo

from data.config import KINDS
from model.rules import RULES
from model.traced import Traced
from train.cli import COMMANDS
from train.config.fields import expected, section_of, walk
from train.config.schema import ExperimentConfig
from train.config.yaml import dump, show

HEAD = """# The config, key by key

Written by `python scripts/config_reference.py docs/config.md` from the classes that check a config; edit those.
YAML 1.2: `3e-4` is a number, `no` a word. Unknown keys, duplicate keys, aliases and tags are errors. `key=value` on the
command line sets any key by its dotted name. There and in a variant a mapping sets the keys in it and leaves the others
of its section as they are; an empty one, such as `watch.instruments={}`, resets the section to its defaults. The
configs of configs/ are found by their bare names from any folder: `deltaflow train quickstart`. *Traced* keys may
differ between variants of one compiled program.
"""

RULES_HEAD = """`model.residual: NAME`, or `{rule: NAME, option: value}`. x is the stream, F a sublayer, N its norm, L
the number of blocks, s the skip scale (`model.skip_scale`); with one there is a counterfactual, the same weights
at s = 0.
"""
TASKS_HEAD = """Rows are drawn by a counter-based generator from (data.seed, step), held-out ones from `data.task_seed`.
The loss of the ideal predictor is logged as `loss/floor`, others as `loss/floor_NAME`.
"""
COMMANDS_HEAD = """# Commands

Written by `python scripts/config_reference.py docs/commands.md` from the commands' own parsers. `deltaflow` is
`.venv/bin/deltaflow` before the environment is activated, and `python -m train` does the same. `key=value` sets any
key of [the config](config.md); quote values that a shell would take apart: `'sweep.seed=[0, 1, 2]'`. A CONFIG is a
file, or the bare name of a [shipped experiment](experiments.md).

| exit code | meaning |
|---|---|
| 0 | done |
| 1 | a run, a claim or the machine failed: a non-finite step, an `expect:` that did not come true, a full disk |
| 2 | what was given cannot be used: words, a config, data, a run; one line with its place, what was expected and got |
| 129, 130, 143 | ended by SIGHUP, SIGINT or SIGTERM, after saving ([stopping.md](stopping.md)) |
"""


def _row(key: str, field: FieldInfo) -> str:
    default = show(field.default) if isinstance(field.default, float) else dump(field.default)
    meaning = (field.description or "").replace("|", "\\|")
    meaning += "; traced" if any(isinstance(mark, Traced) for mark in field.metadata) else ""
    return f"| `{key}` | {expected(field)} | {'required' if field.is_required() else f'`{default}`'} | {meaning} |"


def commands() -> str:
    """Returns the page of the commands."""
    parts = [COMMANDS_HEAD]
    for name, summary in COMMANDS.items():
        parser = argparse.ArgumentParser(add_help=False)
        importlib.import_module(f"train.commands.{name}").arguments(parser)
        usage, rows = [f"deltaflow {name}"], ["| argument | meaning |", "|---|---|"]
        for action in sorted(parser._actions, key=lambda action: bool(action.option_strings)):
            value = str(action.metavar or action.dest.upper()) if action.nargs != 0 else ""
            several = {"?": f"[{value}]", "*": f"[{value} ...]", "+": f"{value} ..."}.get(str(action.nargs), value)
            shown = " ".join(filter(None, [*action.option_strings[-1:], several]))
            usage.append(f"[{shown}]" if action.option_strings and not action.required else shown)
            meaning = (action.help or "").replace("|", "\\|")
            if action.option_strings and value and action.default not in (None, ()) and "default" not in meaning:
                meaning = f"{meaning} (default {action.default!r})".lstrip()
            rows += [f"| `{shown}` | {meaning} |"] if meaning else []
        parts += [f"## {name}\n", f"{summary[0].upper()}{summary[1:]}.\n", f"```text\n{' '.join(usage)}\n```\n"]
        parts += ["\n".join(rows), ""] if len(rows) > 2 else []
    return "\n".join(parts)


def reference() -> str:
    """Returns the page of the config."""
    sections = {key: section for key, field in walk(ExperimentConfig) if (section := section_of(field))}
    parts = [HEAD]
    for key, section in {"": ExperimentConfig, **sections}.items():
        doc = [" ".join((section.__doc__ or "").split()) + "\n"] if key else []
        fields = {name: field for name, field in section.model_fields.items() if not section_of(field)}
        rows = [_row(f"{key}.{name}".lstrip("."), field) for name, field in fields.items()]
        header = ["| key | values | default | meaning |", "|---|---|---|---|"]
        parts += [f"## {key or 'Top level'}\n", *doc, "\n".join(header + rows), ""]
    parts += ["## Residual rules\n", RULES_HEAD, "| rule | skip scale | what it is |", "|---|---|---|"]
    for name, rule in RULES.items():
        doc = rule.meaning or " ".join(rule.implementation().__doc__.split())
        parts.append(f"| `{name}` | {'yes' if rule.additive else 'no'} | {doc.replace('|', chr(92) + '|')} |")
    parts += ["", "## Synthetic data\n", TASKS_HEAD, "| data.kind | what it is |", "|---|---|"]
    for name, kind in KINDS.items():
        if kind.code.startswith(".synthetic"):
            doc = " ".join((kind.opener().__doc__ or "").split())
            parts.append(f"| `{name}` | {doc.replace('|', chr(92) + '|')} |")
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    pages = {"config.md": reference, "commands.md": commands}
    files = [Path(name) for name in sys.argv[1:]]
    if not files or any(file.name not in pages for file in files):
        sys.exit(__doc__)
    for file in files:
        file.write_text(pages[file.name](), encoding="utf-8")
