"""The sweep over device counts, in small: one to four and no more; and that it sees a run that is not gone on with."""

import numpy as np
import pytest

from scripts.torture import topology


@pytest.mark.slow
def test_a_run_goes_on_with_other_devices():
    (row,) = topology.rows(0.01, seed=0)
    assert (row.trials, row.held, row.broken) == (1, 1, ())


def test_what_differs_is_seen():
    rows = [{"step": 0, "loss/val": 2.0}, {"step": 4, "loss/val": 1.0}]
    params = {"w": np.ones(3)}
    assert topology._compared((rows, params), (rows, params)) == (0.0, None)
    nudged = {"w": np.ones(3) * (1 + 1e-6)}
    assert topology._compared((rows, nudged), (rows, params))[1] == "differs by 1.0e-06"
    later = [rows[0], {"step": 4, "loss/val": 1.0 + 2e-7}]
    assert topology._compared((later, params), (rows, params))[1] == "differs by 2.0e-07"
    assert "logged steps [0, 0, 4]" in str(topology._compared(([rows[0], *rows], params), (rows, params))[1])
