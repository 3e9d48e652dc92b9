"""What cannot be explained, because nobody can tell what is meant."""

from __future__ import annotations

from penstock.errors import UsageError


class UnknownPartyError(UsageError):
    """Nobody of that name or address, or no such port there."""
