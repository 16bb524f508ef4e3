"""A failure that the user is told about in one line."""


class RunError(Exception):
    """Something outside the config went wrong: exit code 1, one clear line and no traceback."""
