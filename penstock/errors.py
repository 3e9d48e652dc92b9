"""The error tree. Each leaf carries an exit code and tells the operator the next step.

    PenstockError (1)
    ├── UsageError (2)       the command was called wrongly
    ├── InputError (2)       a manifest or another file is bad
    ├── NoDaemonError (3)    no daemon answers at the run directory
    └── HostError (1)        this machine lacks something, or the kernel refused something

Packages derive their own leaves from these.
"""

from __future__ import annotations


class PenstockError(Exception):
    """Base of all errors that Penstock raises on purpose. `hint` is the operator's next step."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class UsageError(PenstockError):
    exit_code = 2


class InputError(PenstockError):
    exit_code = 2


class NoDaemonError(PenstockError):
    exit_code = 3


class HostError(PenstockError):
    """The machine lacks something, or the kernel refused something."""

    exit_code = 1
