"""What a rule about server names says to the SNI of a connection, in words."""

from __future__ import annotations

from penstock.dns.patterns import any_matches
from penstock.explain.sides import Word, by
from penstock.policy.server_names import words


def said(word: Word, server_name: str | None) -> tuple[str, bool]:
    """A sentence, and whether it passes. None: nobody said which SNI it has."""
    allowed = f"{words(word.names)} by {by(word.origins)}"
    if server_name is None:
        return f"TLS passes with one of {allowed}; all else is reset", True
    if not server_name:
        return f"without a server name nothing passes: {allowed}", False
    # Case does not count, a dot at the end does: no SNI has one (RFC 6066, 3).
    if not any_matches(word.names, server_name.lower()):
        return f"server name {server_name} is none of {allowed}", False
    return f"server name {server_name} is one of {allowed}", True
