"""What the processes of one training have to decide alike."""

import jax
import numpy as np


def agreed(signal: int | None) -> int | None:
    """The signal that any process has had so far, the largest number of several; None when none has.

    The answer is the same in all processes. They all have to ask equally often, for each waits for the others; a
    process that is alone waits for nobody.
    """
    if jax.process_count() == 1:
        return signal
    from jax.experimental import multihost_utils

    return int(multihost_utils.process_allgather(np.int32(signal or 0)).max()) or None
