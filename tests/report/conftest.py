"""Runs of two variants and three seeds."""

import pytest

from runs import write_run


@pytest.fixture
def sweep(tmp_path):
    """Three seeds of two variants, their losses 2, 2.1, 2.2 and 3, 3.2, 3.4."""
    root = tmp_path / "sweep"
    for seed in range(3):
        write_run(root, f"with,seed={seed}", seed, loss=2 + seed / 10, residual="pre_ln", slope=0.1 * seed)
        write_run(root, f"without,seed={seed}", seed, loss=3 + seed / 5, residual="none", slope=-4.0)
    return root
