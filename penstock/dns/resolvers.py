"""The name servers of this machine.

Source: resolv.conf(5).
"""

from __future__ import annotations

from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path

MOST = 3


def resolvers(path: Path = Path("/etc/resolv.conf")) -> tuple[str, ...]:
    """The first few; none where the file is not there or names none."""
    found = []
    with suppress(OSError):
        for line in path.read_text().splitlines():
            words = line.split()
            if len(words) >= 2 and words[0] == "nameserver":
                with suppress(ValueError):
                    found.append(str(ip_address(words[1])))
    return tuple(found[:MOST])
