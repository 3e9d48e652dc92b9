"""`python -m penstock.bench.dial ADDRESS PORT THREADS SECONDS http|tcp`: a new connection for each answer.

Prints, as JSON, how long each answer took from its connect on, in µs, and what failed.
"""

from __future__ import annotations

import json
import socket
import struct
import sys
import threading
import time

_QUESTION = {"http": b"GET / HTTP/1.1\r\nHost: dial\r\n\r\n", "tcp": b"there?"}
_RESET = struct.pack("ii", 1, 0)


def _once(target: tuple[str, int], question: bytes) -> None:
    with socket.create_connection(target, timeout=5) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # So that no port waits after it (TIME_WAIT): there are not enough for the rate.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        sock.sendall(question)
        answer = sock.recv(4096)
        if answer != question and not answer.startswith(b"HTTP/1.1 200"):
            raise ConnectionError(repr(answer[:80]))


def run(target: tuple[str, int], threads: int, seconds: float, question: bytes) -> dict[str, object]:
    took: list[float] = []
    failed: list[str] = []
    end = time.monotonic() + seconds

    def work() -> None:
        while (began := time.monotonic()) < end:
            try:
                _once(target, question)
                took.append(1e6 * (time.monotonic() - began))
            except OSError as error:
                failed.append(repr(error))

    workers = [threading.Thread(target=work) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return {"seconds": seconds, "failed": failed[:10], "took_us": [round(each, 1) for each in took]}


if __name__ == "__main__":
    address, port, threads, seconds, kind = sys.argv[1:]
    print(json.dumps(run((address, int(port)), int(threads), float(seconds), _QUESTION[kind])))
