"""Corpora, tokenizers and batches as numpy arrays, independent of JAX and of the model; and errors in them."""


class DataError(ValueError):
    """Data or user code that a config cannot use; one line, which begins with the config's key if one is to blame."""


def reason(error: BaseException) -> str:
    """The innermost cause as one line: "Connection refused" rather than the messages of the layers around it."""
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    return (getattr(error, "strerror", None) or str(error) or type(error).__name__).replace("\n", " ")


def first_line(error: BaseException) -> str:
    """The first line of an error's message, at most 300 characters; its type where there is none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def one_line(error: BaseException) -> str:
    """The type of an error and the first line of its message, for errors in the user's own code.

    >>> one_line(ValueError("two\\nlines"))
    'ValueError: two'
    """
    return f"{type(error).__name__}: {first_line(error)}" if str(error).strip() else type(error).__name__
