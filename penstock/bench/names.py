"""A server of names for `penstock bench dns`: ``python -m penstock.bench.names ADDRESS``.

As cheap as one in Python can be, so that little of what is measured is its own: any name of the form
``hN.…`` has the address 198.18.0.0 + N, told in the question's own bytes.
"""

from __future__ import annotations

import socket
import struct
import sys

_BASE = 198 << 24 | 18 << 16
_HEAD = 12


def question(number: int, name: int) -> bytes:
    """A question for the address of ``h<name>.bench.test``."""
    labels = b"".join(bytes([len(each)]) + each for each in (b"h%d" % name, b"bench", b"test"))
    return struct.pack("!HHHHHH", number, 0x0100, 1, 0, 0, 0) + labels + b"\0" + struct.pack("!HH", 1, 1)


def answer(asked: bytes) -> bytes:
    """RFC 1035, 4.1: the question, and one address for a day."""
    size = asked[_HEAD]
    name = int(asked[_HEAD + 2 : _HEAD + 1 + size])
    end = asked.index(b"\0", _HEAD) + 5
    head = asked[:2] + struct.pack("!HHHHH", 0x8180, 1, 1, 0, 0)
    record = struct.pack("!HHHIHI", 0xC000 | _HEAD, 1, 1, 86400, 4, _BASE + name)
    return head + asked[_HEAD:end] + record


def main() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind((sys.argv[1], 53))
        while True:
            asked, client = server.recvfrom(2048)
            server.sendto(answer(asked), client)


if __name__ == "__main__":
    main()
