"""Small things that several steps say or do."""

from __future__ import annotations

from pathlib import Path

from penstock.demo import client
from penstock.demo.watch import Record

DENIED = b"Access denied\r\n"
REFUSED_AFTER = 0.7
"""Seconds that a dropped connection is tried for: the kernel says meanwhile that it dropped it."""
NOTHING = f"nothing in {REFUSED_AFTER} s"


def dial(netns: Path, address: str, port: int) -> str:
    """Try to connect out of `netns`, and say what became of it."""
    try:
        client.dial(netns, address, port, REFUSED_AFTER).close()
    except TimeoutError:
        return NOTHING
    except OSError as error:
        return str(error.strerror or error)
    return "connected"


def reason(record: Record | None) -> str:
    """Why the kernel did what a flow's record tells."""
    return str(record["reason"]) if record else ""


def said(answer: client.Answer) -> str:
    """An answer in one line."""
    return f"200, answered by {answer.pod}" if answer.status == 200 else f"{answer.status} {answer.body!r}"
