"""Errors that the user caused or can mend: one clear line, an exit code, and no traceback."""


class UserError(Exception):
    """An error that is printed without a traceback.

    Args:
        message: what was expected and what was found, on one line; begins with the config's key where one is to blame.
        place: file and line, or "command line", in front of the message.
        exit_code: 1 for a failure, 2 for a config or a command line that cannot be used.
    """

    def __init__(self, message: str, place: object = None, exit_code: int = 1) -> None:
        super().__init__(message)
        self.message, self.place, self.exit_code = message, place, exit_code

    def __str__(self) -> str:
        return self.message if self.place is None else f"{self.place}: {self.message}"


# Messages of devices without memory; XLA's matrix products on a CPU (YNNPACK) give no reason of their own.
_NO_MEMORY = ("RESOURCE_EXHAUSTED", "YNNPACK operation failed")


def out_of_memory(error: BaseException) -> bool:
    """Returns true for errors of Python, numpy or a device (known by its class's name) about missing memory."""
    of_device = type(error).__name__ in ("JaxRuntimeError", "XlaRuntimeError")
    return isinstance(error, MemoryError) or (of_device and any(text in str(error) for text in _NO_MEMORY))


def first_line(error: BaseException) -> str:
    """The first line of a library's error; its type where the text is empty."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
