"""Files and names that were made to run code, to fill the memory or the disk, or to write where they must not.

A trial is one command line, or one call of what it calls to read a file, in this process, under the audit hook of
audit.py. It held when the answer was an error in one line (or, for a name that is harmless, a result), in at most
LIMIT_S seconds of processor time, nothing was run (a pickle here makes a folder when it is loaded), and nothing was
written outside of the folder that runs go to.
"""

import os
import random
import tempfile
from collections.abc import Iterable
from pathlib import Path

from scripts.torture.audit import sweep
from scripts.torture.bombs import yaml_bombs, zip_bombs
from scripts.torture.headers import headers
from scripts.torture.names import names
from scripts.torture.pickles import pickles
from scripts.torture.row import Row

PICKLES, NAMES, BOMBS, HEADERS = 100, 300, 20, 500


def rows(scale: float, seed: int) -> Iterable[Row]:
    """Five rows."""
    here = os.getcwd()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder).resolve()
        (root / "runs").mkdir()
        (root / "work").mkdir()
        os.chdir(root / "work")
        try:
            yield sweep("a pickle in the place of a file", "never loaded", pickles(root, _n(PICKLES, scale)), root)
            claimed = names(root, random.Random(f"{seed} names"), _n(NAMES, scale))
            yield sweep("a name that leads elsewhere", "nothing is written outside of runs_dir", claimed, root)
            yield sweep("a bomb of YAML", "refused, nothing expanded", yaml_bombs(root, _n(BOMBS, scale)), root)
            yield sweep("a bomb of zip", "refused, nothing unpacked", zip_bombs(root, _n(BOMBS, scale)), root)
            crafted = headers(root, random.Random(f"{seed} headers"), _n(HEADERS, scale))
            yield sweep("a crafted header of token ids", "refused, or read within its file", crafted, root)
        finally:
            os.chdir(here)


def _n(trials: int, scale: float) -> int:
    return max(1, round(trials * scale))
