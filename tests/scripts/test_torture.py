"""What runs the sweeps: one that breaks is a broken row, and keeps no other from its end."""

import sys
from types import SimpleNamespace

from scripts.torture.row import Row
from scripts.torture.swept import swept


def test_a_sweep_that_breaks_is_a_broken_row_and_keeps_what_it_has(monkeypatch):
    def rows(scale, seed):
        yield Row("a fault", "a promise", 3, 3, f"scale {scale}, seed {seed}")
        raise KeyboardInterrupt

    monkeypatch.setitem(sys.modules, "scripts.torture.half", SimpleNamespace(rows=rows))
    found = swept("half", 0.5, 7)
    assert [(row.trials, row.held) for row in found.rows] == [(3, 3), (1, 0)]
    assert found.told[1] == "  a fault: 3 of 3 held; scale 0.5, seed 7"
    assert found.told[2:] == ["  the sweep half itself: 0 of 1 held", "    broken: KeyboardInterrupt: "]
    assert "ModuleNotFoundError" in swept("no_such_sweep", 1, 0).told[-1]
