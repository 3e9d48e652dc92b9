"""An entry of `headers` in a policy, as its check and its meaning both read it."""

from __future__ import annotations


def header_parts(entry: str) -> tuple[str, str | None]:
    """The name, and the value that it must have; None if any will do.

    Cilium splits at the first space: "Name value" is read like "Name: value".
    """
    name, colon, value = entry.strip().partition(":")
    if not colon:
        name, colon, value = name.partition(" ")
    return name.strip(), value.strip() if colon else None
