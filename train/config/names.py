"""Names of runs and variants: each can be a folder on any system, stays where it is put, and hides nothing of a run."""

import os
import re

from .yaml12 import show

MAX_NAME = 120
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.,=+-]*")
_DEVICE = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?", re.IGNORECASE)  # Windows', with any ending
_OURS = {"ckpt", "config.yaml", "data.json", "tokenizer.json", "choices.json", "summary.json", "metrics.jsonl"}
_OURS |= {"report.html", "report.md", "compare.html", "compare.md"}


def safe(name: str) -> bool:
    """Whether a name can be the folder of a run or of a variant.

    >>> [safe(name) for name in ("with,seed=0", "../x", "-a", "a.", "NUL.txt", "ckpt", "Report.html", "null")]
    [True, False, False, False, False, False, False, True]
    """
    return len(name) <= MAX_NAME and _formed(name) and not _reserved(name)


def unsafe(name: str) -> str:
    """What to say of a name that cannot."""
    if len(name) > MAX_NAME:
        return f"expected a folder name of at most {MAX_NAME} characters, got {len(name)}: {show(name)}"
    if not _formed(name):
        rule = "letters, digits and _ . , = + -, the first a letter or digit, no '..'"
        if name.endswith(".") and _formed(name.rstrip(".")):
            rule = "without a dot at its end"
        return f"expected a folder name ({rule}), got {show(name)}"
    return f"expected another folder name, got {show(name)}, which is {_reserved(name)}"


def _formed(name: str) -> bool:
    return _NAME.fullmatch(name) is not None and ".." not in name and not name.endswith(".")


def _reserved(name: str) -> str:
    if _DEVICE.fullmatch(name):
        return "a device on Windows"
    if name.lower() in _OURS:
        return "a name that runs use for their own files"
    return "what TensorBoard takes for a file of events" if "tfevents" in name else ""


def wrong_path(path: str) -> str | None:
    """What to say of a folder that no system can make; None for one that can be tried."""
    longest = max(path.split("/"), key=lambda part: len(os.fsencode(part)))
    if len(os.fsencode(longest)) > 255:
        return f"expected names of at most 255 bytes, got {len(os.fsencode(longest))}: {show(longest)}"
    if len(os.fsencode(path)) > 3000:
        return f"expected a path of at most 3000 bytes, got {len(os.fsencode(path))}"
    return None
