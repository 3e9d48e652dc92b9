"""Python's garbage collector, kept from looking at what is only just being made.

Compiling a large World makes hundreds of thousands of values that stay, and the collector would go through
them again and again meanwhile, for nothing: no cycles are made there. It costs a third of the time.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import ParamSpec, TypeVar

_MANY = 20_000
"""New objects that are not looked at at all; the daemon looks at everything after a great change."""

P = ParamSpec("P")
R = TypeVar("R")


@contextmanager
def uncollecting() -> Iterator[None]:
    """No collections in here; what is due comes after it."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            if gc.get_count()[0] > _MANY:
                # Hardly a cycle is among them, and to look for one takes as long as to compile again.
                gc.freeze()
            gc.enable()


def uncollected(work: Callable[P, R]) -> Callable[P, R]:
    """`work` without collections in between."""

    @wraps(work)
    def done(*args: P.args, **kwargs: P.kwargs) -> R:
        with uncollecting():
            return work(*args, **kwargs)

    return done
