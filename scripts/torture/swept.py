"""One sweep from its name, in whatever process: what `python scripts/torture` hands to the processes it starts."""

import importlib
import os
import time
from dataclasses import dataclass

from scripts.torture.row import Row


@dataclass(frozen=True)
class Swept:
    """What a sweep found, and the lines that tell of it."""

    rows: list[Row]
    told: list[str]


def swept(name: str, scale: float, seed: int) -> Swept:
    """`name`: a module beside this one."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    began = time.monotonic()
    rows: list[Row] = []
    try:
        rows += importlib.import_module(f"scripts.torture.{name}").rows(scale, seed)
    except BaseException as error:  # the other sweeps go on
        rows.append(Row(f"the sweep {name} itself", "ends", 1, 0, broken=(f"{type(error).__name__}: {error}",)))
    told = [f"{name}: {time.monotonic() - began:.0f} s"]
    for row in rows:
        told.append(f"  {row.fault}: {row.held:,} of {row.trials:,} held{row.note and '; '}{row.note}")
        told += [f"    broken: {line}" for line in row.broken]
    return Swept(rows, told)
