"""The sweep over damaged checkpoints, in small; and that it sees a checkpoint that is not verified."""

import gc

import pytest

from scripts.torture import bits
from train.store import manifest
from train.store.checkpoint import Checkpoints


def test_no_damage_is_restored():
    found = list(bits.rows(0.02, seed=1))
    assert len(found) == 8 and sum(row.trials for row in found) >= 30
    assert [(row.fault, row.broken) for row in found if row.held != row.trials] == []


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # Orbax's, of damaged files
@pytest.mark.parametrize("skipped", ["everything", "hashes"])
def test_the_sweep_sees_what_is_not_verified(monkeypatch, skipped):
    if skipped == "everything":
        monkeypatch.setattr(Checkpoints, "damage", lambda *_: None)
    else:
        monkeypatch.setattr(manifest.FileSum, "__eq__", lambda one, other: one.bytes == other.bytes)
    found = {row.fault: row for row in bits.rows(0.02, seed=1)}
    assert found["one bit flipped, in any file"].held < found["one bit flipped, in any file"].trials
    assert found["two files exchanged"].broken or skipped == "hashes"
    gc.collect()  # Orbax's futures, which log what nobody asked them for
