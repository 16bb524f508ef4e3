"""Orbax's storage raises when it fails, which is all a caller needs; what it prints besides is held back.

It logs the failure with its traceback, and its threads, which know nothing of each other, find the event loop closed
and print one traceback each, some of them later.
"""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ..device.unraisable import drop


@contextmanager
def quiet_storage() -> Iterator[None]:
    """For the time of a save or a restore; what its threads print afterwards is held back for good."""
    drop(_loop_is_closed)
    logger = logging.getLogger("absl")
    logger.addFilter(_none)
    try:
        yield
    finally:
        logger.removeFilter(_none)


def _none(record: logging.LogRecord) -> bool:
    return False


def _loop_is_closed(lost: Any) -> bool:
    """What TensorStore's own threads hand on; in the main thread nobody but we are the cause."""
    error, elsewhere = lost.exc_value, threading.current_thread() is not threading.main_thread()
    return elsewhere and isinstance(error, RuntimeError) and str(error) == "Event loop is closed"
