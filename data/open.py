"""Opening of the source that the `data:` section of a config names."""

from .config import DataConfig, problems
from .errors import DataError
from .source import Source


def open_source(config: DataConfig) -> Source:
    """The data that the config names. Raises DataError for whatever can go wrong."""
    for key, message in problems(config):
        raise DataError(f"data.{key}: {message}")
    if ":" in config.kind:
        from .custom import open_custom

        return open_custom(config)
    if config.kind == "text":
        from .text import open_text

        return open_text(config)
    if config.kind == "tokens":
        from .tokens import open_tokens

        return open_tokens(config)
    if config.kind == "digits":
        from .digits import open_digits

        return open_digits(config)
    from .synthetic import TASKS, Synthetic

    return Synthetic(TASKS[config.kind](config))
