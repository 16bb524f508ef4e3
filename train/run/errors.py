"""A failure that the user is told about in one line."""


class RunError(Exception):
    """Something outside the config went wrong: exit code 1, one clear line and no traceback."""


def out_of_memory(error: BaseException) -> bool:
    """Whether it says that there was no memory: Python's or numpy's, or a device's, which is known by its name here."""
    refused = type(error).__name__ in ("JaxRuntimeError", "XlaRuntimeError") and "RESOURCE_EXHAUSTED" in str(error)
    return refused or isinstance(error, MemoryError)


def first_line(error: BaseException) -> str:
    """What a library's error says, on one line; its type where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
