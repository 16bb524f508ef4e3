"""Writes docs/config.md, the reference of every config key and residual rule, from the classes that own them.

python scripts/config_reference.py docs/config.md
"""

import sys
from pathlib import Path

from pydantic.fields import FieldInfo

from data.config import KINDS
from model.rules import RULES
from model.traced import Traced
from train.config.fields import expected, section_of, walk
from train.config.schema import ExperimentConfig
from train.config.yaml import dump, show

HEAD = """# The config, key by key

Written by `python scripts/config_reference.py docs/config.md` from the classes that check a config; edit those.
YAML 1.2: `3e-4` is a number, `no` a word. Unknown keys, duplicate keys, aliases and tags are errors. `key=value` on the
command line sets any key by its dotted name. The configs of configs/ are found by their bare names from any folder:
`deltaflow train quickstart`. *Traced* keys may differ between variants of one compiled program.
"""

RULES_HEAD = """`model.residual: NAME`, or `{rule: NAME, option: value}`. x is the stream, F a sublayer, N its norm, L
the number of blocks, s the skip scale (`model.skip_scale`); with one there is a counterfactual, the same weights
at s = 0.
"""
TASKS_HEAD = """Rows are drawn by a counter-based generator from (data.seed, step), held-out ones from `data.task_seed`.
The best possible loss is logged as `loss/floor`, others as `loss/floor_NAME`.
"""


def _row(key: str, field: FieldInfo) -> str:
    default = show(field.default) if isinstance(field.default, float) else dump(field.default)
    meaning = (field.description or "").replace("|", "\\|")
    meaning += "; traced" if any(isinstance(mark, Traced) for mark in field.metadata) else ""
    return f"| `{key}` | {expected(field)} | {'required' if field.is_required() else f'`{default}`'} | {meaning} |"


def reference() -> str:
    """The whole page."""
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
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    Path(sys.argv[1]).write_text(reference(), encoding="utf-8")
