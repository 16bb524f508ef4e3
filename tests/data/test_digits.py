"""Handwritten digits: form, split, and that labels belong to their images."""

import sys

import numpy as np
import pytest

from sources import opened, refused


def test_digits(wording):
    pytest.importorskip("sklearn")
    data = opened(kind="digits", patch=4, val_fraction=0.2)
    assert data.spec == ("classification", 4, None, 10, 16, True)
    batch = data.train_batches(64, 0, 0, 20)
    assert batch.inputs.shape == (20, 64, 4, 16) and batch.inputs.dtype == np.float32
    assert -1 <= batch.inputs.min() < -0.9 and 0.9 < batch.inputs.max() <= 1
    np.testing.assert_array_equal(data.train_batches(64, 0, 7, 1).inputs[0], batch.inputs[7])
    assert set(np.unique(batch.targets)) == set(range(10))
    held_out, weights = data.heldout_batches(64, None)
    assert weights.sum() == 359
    prior = data.floors(64, None)["prior"]
    assert prior == pytest.approx(np.log(10), abs=0.02) and prior < np.log(10)
    some = np.unique(data.heldout_batches(5, 1)[0].targets, return_counts=True)[1] / 5
    assert data.floors(5, 1)["prior"] == pytest.approx(-np.sum(some * np.log(some)))
    trained = {image.tobytes() for image in batch.inputs.reshape(-1, 64)}
    held = {image.tobytes() for image in held_out.inputs.reshape(-1, 64)[weights.ravel() > 0]}
    assert len(trained) > 700 and not trained & held
    other = opened(kind="digits", patch=4, val_fraction=0.2, task_seed=1)
    assert not np.array_equal(other.heldout_batches(64, None)[0].inputs, held_out.inputs)
    # Nearest neighbours tell the class of most held-out images, so images and labels belong together.
    train, val = batch.inputs.reshape(-1, 64), held_out.inputs.reshape(-1, 64)[:100]
    nearest = ((val[:, None] - train[None]) ** 2).sum(axis=2).argmin(axis=1)
    assert (batch.targets.ravel()[nearest] == held_out.targets.ravel()[:100]).mean() > 0.9
    wording(refused(kind="digits", val_fraction=1e-5), "data.val_fraction")


def test_without_scikit_learn(monkeypatch, wording):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    wording(refused(kind="digits"), "data.kind")
