"""`python -m penstock.bench.answer PORT`: the least HTTP server that will do.

For benchmarks that wait for a verdict: it costs far less than what they measure, and needs no package.
One fixed answer to whatever comes, over kept-alive connections without pipelining; no request has a body.
"""

from __future__ import annotations

import socket
import sys
import threading

BODY = b"x" * 64
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(BODY), BODY)


def serve(port: int) -> None:
    """Serve on all addresses of both families until the process ends."""
    with socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True) as listener:
        while True:
            connection, _ = listener.accept()
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=_answer, args=(connection,), daemon=True).start()


def _answer(connection: socket.socket) -> None:
    received = b""
    with connection:
        try:
            while part := connection.recv(65536):
                received += part
                if received.endswith(b"\r\n\r\n"):
                    connection.sendall(ANSWER)
                    received = b""
        except ConnectionError:
            pass  # the client has ended it


if __name__ == "__main__":
    serve(int(sys.argv[1]))
