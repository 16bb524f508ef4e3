"""Traced fields as inputs of programs, by their mark alone."""

from typing import Annotated

from pydantic import BaseModel

from model.traced import Traced, numbers, structure


class Inner(BaseModel):
    a: Annotated[float, Traced()] = 0.5
    b: float = 0.25


class Outer(BaseModel):
    rate: Annotated[float, Traced(off=0.0)] = 0.0
    cap: Annotated[float | None, Traced()] = None
    pair: Annotated[tuple[float, float], Traced()] = (0.9, 0.99)
    size: int = 3
    inner: Inner = Inner()


def test_numbers_are_those_that_are_marked_and_on():
    assert numbers(Outer()) == {"pair": (0.9, 0.99), "inner.a": 0.5}
    assert numbers(Outer(rate=0.1, cap=2.0)) == {"rate": 0.1, "cap": 2.0, "pair": (0.9, 0.99), "inner.a": 0.5}


def test_structures_differ_in_what_is_not_marked_and_in_what_is_off():
    base = structure(Outer(rate=0.1))
    assert base == structure(Outer(rate=0.2, pair=(0.0, 0.5), inner=Inner(a=7.0)))
    for other in (Outer(), Outer(rate=0.1, cap=1.0), Outer(rate=0.1, size=4), Outer(rate=0.1, inner=Inner(b=1.0))):
        assert structure(other) != base
