"""All claims, in the order in which they are told."""

from . import backprop, clip, cost, descent, losses, optimizers, scalars, transformer
from .claim import Claim
from .subject import Subject


def claims_of(subject: Subject) -> tuple[Claim, ...]:
    """SCIENCE, one claim or several an item; those about a whole model are about `subject`."""
    return (
        *scalars.CLAIMS,
        *backprop.CLAIMS,
        *transformer.claims(subject),
        *losses.CLAIMS,
        *optimizers.CLAIMS,
        *descent.CLAIMS,
        *clip.CLAIMS,
        *cost.claims(subject),
    )
