"""Entry point of the `deltaflow` command, installed as the module `_deltaflow`, a name that no file of a user has.

A `train.py` on PYTHONPATH would otherwise be imported, and run, in place of the package `train`. What hides `model` and
`data` is up to train/__init__.py.
"""

import importlib
import json
from importlib.metadata import distribution
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname


def script() -> None:
    """Runs the command line of the installed distribution; exits with 1 and one line where another `train` hides it."""
    installed = distribution("deltaflow")
    source = json.loads(installed.read_text("direct_url.json") or "{}")
    editable = source.get("dir_info", {}).get("editable", False)
    home = Path(url2pathname(urlsplit(source["url"]).path) if editable else str(installed.locate_file("")))
    spec = find_spec("train")
    path = Path(spec.origin or list(spec.submodule_search_locations or [])[0]) if spec else None
    if path and path.resolve() != (home / "train" / "__init__.py").resolve():
        line = f"{path} is imported as `train` and hides {home / 'train'}"
        raise SystemExit(f"deltaflow: {line}: rename it, or take its folder off PYTHONPATH")
    importlib.import_module("train.cli").script()
