"""A failure that the user is told about in one line."""


class RunError(Exception):
    """Something outside the config went wrong: exit code 1, one clear line and no traceback."""


def first_line(error: BaseException) -> str:
    """What a library's error says, on one line; its type where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
