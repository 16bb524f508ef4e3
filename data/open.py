"""From the `data:` section of a config to its source."""

from .config import DataConfig, problems
from .errors import DataError
from .source import Source


def open_source(config: DataConfig) -> Source:
    """The data that the config names. Raises DataError with one line for whatever can go wrong."""
    for key, what in problems(config):
        raise DataError(f"data.{key}: {what}")
    if ":" in config.kind:
        from .custom import open_own

        return open_own(config)
    if config.kind == "text":
        from .text import open_dataset

        return open_dataset(config)
    if config.kind == "tokens":
        from .tokens import open_tokens

        return open_tokens(config)
    if config.kind == "digits":
        from .digits import open_digits

        return open_digits(config)
    from .synthetic import TASKS, Synthetic

    return Synthetic(TASKS[config.kind](config))
