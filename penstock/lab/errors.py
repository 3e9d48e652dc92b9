"""Errors of the lab: what the operator wrote (spec) and what the machine did not allow (lab)."""

from __future__ import annotations

from penstock.errors import HostError, InputError


class LabSpecError(InputError):
    """The lab's file is not good. The message starts with ``file:line:`` where a line is known."""


class LabError(HostError):
    """A lab could not be made, found or taken down."""
