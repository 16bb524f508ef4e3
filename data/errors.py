"""Errors in the data, or in the `data:` section, that the user can mend."""


class DataError(ValueError):
    """Data that cannot be used as the config asks; one line, which begins with the config's key if one is to blame."""
