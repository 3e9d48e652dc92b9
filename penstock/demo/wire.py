"""The bytes on a node's link, read with a packet socket while something is sent."""

from __future__ import annotations

import socket
from pathlib import Path

from penstock.demo.evidence import Segment, segment
from penstock.lab import entered

ETH_P_ALL = 3
SNAPLEN = 65536
# The answer has come, so its packets have passed: whatever is not in the buffer yet is not of interest.
_BUFFER = 8 << 20


class Capture:
    """Every frame that passes `interface` of `netns` from now on. Use as a context manager."""

    def __init__(self, netns: Path, interface: str = "eth0") -> None:
        with entered(netns):
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
            # Bound last: from here on the socket sees frames, and only those of this interface.
            self._socket.bind((interface, ETH_P_ALL))
        self._socket.setblocking(False)

    def __enter__(self) -> Capture:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def segments(self) -> list[Segment]:
        """The TCP segments with data that passed so far."""
        found: list[Segment] = []
        while True:
            try:
                frame = self._socket.recv(SNAPLEN)
            except BlockingIOError:
                return found
            if (one := segment(frame)) is not None:
                found.append(one)
