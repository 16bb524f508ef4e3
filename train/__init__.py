"""The trainer: config, gradient-flow measurements, the pure core, the run around it, reports and commands.

Imports go one way: commands -> run -> report, chain -> log, store, device -> instruments -> core -> gradflow -> config,
and all of them -> model, data.
"""

import sys
from importlib.util import find_spec
from pathlib import Path


def hidden_package(home: Path, *packages: str) -> str | None:
    """Returns one line about the first of the packages in `home` that Python would import from elsewhere, or None."""
    for name in packages:
        ours, spec = home / name, find_spec(name)
        if spec is None or not ours.is_dir():
            continue
        paths = [Path(path) for path in spec.submodule_search_locations or [spec.origin or name]]
        if ours.resolve() not in [path.resolve() for path in paths]:
            return (
                f"{paths[0]} is imported as `{name}` and hides {ours}: rename it, or run `deltaflow` (not `python -m "
                "train`) without its folder on PYTHONPATH"
            )
    return None


if _line := hidden_package(Path(__file__).parents[1], "model", "data"):
    # A program exits with the line; `python -m` has "-m" as its first argument while it looks for the module.
    _program = Path(sys.argv[0]).stem in ("-m", "deltaflow")
    raise SystemExit(f"deltaflow: {_line}") if _program else ImportError(_line)
