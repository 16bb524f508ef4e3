"""Instruments on gradients: their entries, angles between them, and their noise."""

import jax

from data.source import Batch
from model.network import Params
from model.residual import without_skip

from ..core.batch import micro_total
from ..gradflow import gradients, noise
from ..gradflow.norms import Norm
from .readings import Reading, Signed
from .snapshot import Snapshot


def entries(snapshot: Snapshot) -> dict[str, Reading]:
    """Zeros among the gradient's entries, and the histogram of their sizes."""
    result = snapshot.backward(snapshot.params)
    return {"grad/zero_fraction": gradients.zero_fraction(result), "grad/histogram": gradients.histogram(result)}


def weight_dot_grad(snapshot: Snapshot) -> dict[str, Reading]:
    """<W, dL/dW>."""
    dots = gradients.weight_dot_grad(snapshot.params, snapshot.backward(snapshot.params))
    return {"grad/dot_weight": {tag: Signed(dot) for tag, dot in dots.items()}}


def twins(snapshot: Snapshot) -> dict[str, Reading]:
    """Cosine to the gradient of the same weights at skip scale 0."""
    with_skip = snapshot.backward(snapshot.params)
    without = snapshot.backward(snapshot.params, without_skip(snapshot.hp.model))
    return _angles("cosine/without_skip", gradients.cosines(with_skip, without))


def successive(snapshot: Snapshot) -> dict[str, Reading]:
    """Cosine to the gradient of the next step, at its weights and on its batch."""
    this, following = snapshot.backward(snapshot.params), snapshot.backward(snapshot.updated(), index=1)
    return _angles("cosine/next_step", gradients.cosines(this, following))


def _angles(name: str, cosines: gradients.Cosines) -> dict[str, Reading]:
    return {name: {"layer": cosines.layer, "all": cosines.whole}}


def noise_scale(snapshot: Snapshot) -> dict[str, Reading]:
    """Trace of the gradient's covariance, its squared mean, and their ratio in windows."""
    parts = noise_parts(snapshot.config.data.batch)

    def gradient(part: Batch, whole: Batch) -> Params:
        total = micro_total(whole, parts)  # so that the mean over parts is the whole batch's gradient
        return jax.grad(snapshot.loss_of)(snapshot.params, part, total)

    of = noise.noise(gradient, snapshot.batches, parts)
    ratio = of.trace.mantissa / of.gradient.mantissa
    return {
        "noise/scale": Signed(Norm(ratio, of.trace.exponent - of.gradient.exponent)),
        "noise/gradient_square": Signed(of.gradient),
        "noise/trace": Signed(of.trace),
    }


def noise_parts(batch: int) -> int:
    """The number of parts that a batch is cut into: the largest divisor up to 8, or the smallest beyond.

    >>> [noise_parts(batch) for batch in (16, 12, 7, 22, 11, 121, 1)]
    [8, 6, 7, 2, 11, 11, 1]
    """
    few = max(parts for parts in range(1, min(8, batch) + 1) if batch % parts == 0)
    return few if few > 1 else next((parts for parts in range(9, batch + 1) if batch % parts == 0), 1)
