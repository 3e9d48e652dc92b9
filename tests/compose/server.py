"""What runs in the tests' containers: answers over HTTP with the container's name, drains on SIGTERM."""

import os
import signal
import socket
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1

    def do_GET(self) -> None:
        body = sys.argv[1].encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


ThreadingHTTPServer.request_queue_size = 256
ThreadingHTTPServer.address_family = socket.AF_INET6  # and IPv4 with it
server = ThreadingHTTPServer(("::", int(sys.argv[2]) if len(sys.argv) > 2 else 8080), Handler)
# It goes on for a while, as whoever sends to it needs a moment to know.
signal.signal(signal.SIGTERM, lambda *_: threading.Timer(0.7, os._exit, (0,)).start())
server.serve_forever()
