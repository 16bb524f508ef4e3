"""Real images without a download: the 1,797 handwritten digits of scikit-learn, 8x8 pixels (extra `[digits]`)."""

import hashlib
from dataclasses import dataclass

import numpy as np

from . import DataError
from .batches import Draws
from .config import DataConfig
from .floors import prior
from .source import Batch, BatchSource, DataSpec, counted, tiled

_SPLIT, _ORDER = 4, 5  # streams, see Draws
_SIDE = 8


@dataclass(frozen=True, eq=False)
class Digits(BatchSource):
    """Images cut into square patches, one a token, each pixel in [-1, 1], and the class of each image.

    Alpaydin & Kaynak 1998, UCI "Optical Recognition of Handwritten Digits". `val_fraction` of the images, chosen by
    `task_seed`, are held out.
    """

    train: Batch  # inputs [N, T, patch^2], targets [N]
    val: Batch
    spec: DataSpec
    details: str
    sha256: str

    @property
    def name(self) -> str:
        return "digits"

    def train_batches(self, batch: int, seed: int, first_step: int, steps: int) -> Batch:
        """Images drawn with replacement, leaves [steps, B, ...]."""
        index = Draws(seed, _ORDER, first_step, steps, batch).integers(len(self.train.targets))
        return Batch(*(leaf[index.reshape(steps, batch)] for leaf in self.train[:2]))

    def heldout_batches(self, batch: int, batches: int | None) -> tuple[Batch, np.ndarray]:
        return tiled(self.val, batch, batches)

    def floors(self, batch: int, batches: int | None) -> dict[str, float]:
        """`prior`, the loss of the class frequencies; that of an ideal predictor is unknown."""
        return {"prior": prior(counted(*self.heldout_batches(batch, batches)).targets)}


def open_digits(config: DataConfig) -> Digits:
    """The digits, split and cut into patches. Raises DataError without scikit-learn."""
    try:
        from sklearn.datasets import load_digits  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise DataError(
            "data.kind: digits needs scikit-learn; install it with pip install scikit-learn, or -e '.[digits]'"
        ) from None
    images, labels = load_digits(return_X_y=True)
    patches, n = patches_of(images.reshape(-1, _SIDE, _SIDE) / 8.0 - 1.0, config.patch), len(labels)
    order = np.argsort(Draws(config.task_seed, _SPLIT, 0, 1, 1).uniform(n)[0], kind="stable")
    n_train = n - round(n * config.val_fraction)
    if not 0 < n_train < n:
        raise DataError(f"data.val_fraction: {config.val_fraction} of {n} images leaves a split empty")
    rows = Batch(patches.astype(np.float32)[order], labels.astype(np.int32)[order])
    train, val = (Batch(*(leaf[part] for leaf in rows[:2])) for part in (slice(n_train), slice(n_train, None)))
    spec = DataSpec("classification", patches.shape[1], None, 10, channels=patches.shape[2], pooled=True)
    digest = hashlib.sha256(rows.inputs.tobytes() + rows.targets.tobytes()).hexdigest()
    details = f"{n_train:,} + {n - n_train:,} held-out images, {spec.context} patches of {spec.channels} pixels"
    return Digits(train, val, spec, details, digest)


def patches_of(images: np.ndarray, side: int) -> np.ndarray:
    """[N, S, S] images as [N, (S / side)^2, side^2] patches, row by row.

    >>> patches_of(np.arange(16).reshape(1, 4, 4), 2)[0].tolist()
    [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]
    """
    n, size = len(images), images.shape[1] // side
    return images.reshape(n, size, side, size, side).transpose(0, 1, 3, 2, 4).reshape(n, size * size, side * side)
