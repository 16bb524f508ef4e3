"""A failure that the user is told about in one line."""

from collections.abc import Iterator
from contextlib import contextmanager

from data.tokenizer import DataError
from train.config.load import Variant


class RunError(Exception):
    """Something outside the config went wrong: exit code 1, one clear line and no traceback."""


@contextmanager
def placed(variant: Variant) -> Iterator[None]:
    """A DataError or RunError from within that begins with a key gets the place where the variant's key was written."""
    try:
        yield
    except (DataError, RunError) as error:
        place = variant.place(str(error))
        raise type(error)(str(error) if place is None else f"{place}: {error}") from None


# How a device says that it has no memory; XLA's matrix products on a CPU (YNNPACK) give no reason when they get none.
_NO_MEMORY = ("RESOURCE_EXHAUSTED", "YNNPACK operation failed")


def out_of_memory(error: BaseException) -> bool:
    """Whether it says that there was no memory: Python's or numpy's, or a device's, which is known by its name here."""
    of_device = type(error).__name__ in ("JaxRuntimeError", "XlaRuntimeError")
    return isinstance(error, MemoryError) or (of_device and any(text in str(error) for text in _NO_MEMORY))


def first_line(error: BaseException) -> str:
    """What a library's error says, on one line; its type where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
