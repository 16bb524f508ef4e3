"""Orbax's storage raises when it fails, which is all a caller needs; what it prints besides is held back.

It logs the failure with its traceback, and its threads, which know nothing of each other, find the event loop closed
and print one traceback each, some of them later.
"""

import logging
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def quiet_storage() -> Iterator[None]:
    """For the time of a save or a restore; what its threads print afterwards is held back for good."""
    if not isinstance(sys.unraisablehook, _Hook):
        sys.unraisablehook = _Hook(sys.unraisablehook)
    logger = logging.getLogger("absl")
    logger.addFilter(_drop)
    try:
        yield
    finally:
        logger.removeFilter(_drop)


def _drop(record: logging.LogRecord) -> bool:
    return False


class _Hook:
    """TensorStore hands what is raised in its own threads to sys.unraisablehook."""

    def __init__(self, before: Callable[[Any], Any]) -> None:
        self.before = before

    def __call__(self, unraisable: Any) -> None:
        error, elsewhere = unraisable.exc_value, threading.current_thread() is not threading.main_thread()
        if not (elsewhere and isinstance(error, RuntimeError) and str(error) == "Event loop is closed"):
            self.before(unraisable)
