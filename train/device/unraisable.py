"""Errors that nobody is there to catch, in callbacks and in other libraries' threads, and that say nothing new.

Python hands them to sys.unraisablehook, which prints a traceback. A hook that was set for the time of a `with` would be
gone when a thread comes late, and would take with it one that was set meanwhile; so there is one, and it stays.
"""

import sys
from collections.abc import Callable
from typing import Any

Known = Callable[[Any], bool]  # of sys.UnraisableHookArgs


class _Hook:
    def __init__(self, before: Callable[[Any], Any]) -> None:
        self.before = before
        self.known: list[Known] = []

    def __call__(self, lost: Any) -> None:
        if not any(known(lost) for known in self.known):
            self.before(lost)


def drop(known: Known) -> None:
    """From now on nothing is printed of the errors that `known` is true of, nor of those that were named before."""
    if not isinstance(sys.unraisablehook, _Hook):
        sys.unraisablehook = _Hook(sys.unraisablehook)
    if known not in sys.unraisablehook.known:
        sys.unraisablehook.known.append(known)
