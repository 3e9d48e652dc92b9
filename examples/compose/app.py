"""The parts of the demo, in nothing but Python's standard library: what an application of yours could be.

app.py frontend     answers over HTTP, and asks `api` for each answer
app.py api NAME     answers over HTTP with its name, and asks `db` over plain TCP now and then
app.py db           sends back over TCP what it gets
app.py load         asks `frontend` all the time, and prints who answered
app.py intruder     tries what it must not, and prints what it got
"""

from __future__ import annotations

import http.client
import socket
import sys
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import StreamRequestHandler, ThreadingTCPServer
from typing import ClassVar

EVERY = 2.0
"""Seconds between two lines of output."""


def say(text: str) -> None:
    print(text, flush=True)


class Answers(BaseHTTPRequestHandler):
    """An HTTP server on port 8080 that answers with a text."""

    protocol_version = "HTTP/1.1"
    wbufsize = -1  # an answer is one packet
    text: ClassVar = staticmethod(lambda: (200, "hello"))

    def do_GET(self) -> None:
        status, text = type(self).text()
        body = text.encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def serve(answer: object) -> None:
    ThreadingHTTPServer.request_queue_size = 128
    handler = type("Handler", (Answers,), {"text": staticmethod(answer)})
    ThreadingHTTPServer(("", 8080), handler).serve_forever()


def ask(host: str, path: str = "/", seconds: float = 2.0) -> tuple[int, str]:
    """(status, body) of one request on a connection of its own; status 0 and why if there is no answer."""
    connection = http.client.HTTPConnection(host, 8080, timeout=seconds)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode().strip()
    except OSError as e:
        return 0, "no answer" if isinstance(e, TimeoutError) else str(e)
    finally:
        connection.close()


def ask_db() -> str:
    try:
        with socket.create_connection(("db", 5432), timeout=1.0) as s:
            s.sendall(b"select 1\n")
            return "answered" if s.recv(64) else "closed"
    except OSError as e:
        return "no answer" if isinstance(e, TimeoutError) else str(e)


def frontend() -> None:
    serve(lambda: ask("api"))


def api(name: str) -> None:
    def look() -> None:
        before = ""
        while True:
            found = ask_db()
            if found != before:
                say(f"db: {found}")
            before = found
            time.sleep(EVERY)

    threading.Thread(target=look, daemon=True).start()
    serve(lambda: (200, name))


def ask_once(host: str, path: str) -> None:
    end = time.monotonic() + 5.0
    while True:
        status, text = ask(host, path)
        if status or text == "no answer" or time.monotonic() > end:
            say(f"{status} {text}" if status else text)
            return
        time.sleep(0.1)  # the server, or its name, may not be there yet


def db() -> None:
    class Echo(StreamRequestHandler):
        def handle(self) -> None:
            for line in self.rfile:
                self.wfile.write(line)

    ThreadingTCPServer.allow_reuse_address = True
    ThreadingTCPServer(("", 5432), Echo).serve_forever()


def load() -> None:
    total: Counter[str] = Counter()
    while True:
        end = time.monotonic() + EVERY
        while time.monotonic() < end:
            status, text = ask("frontend")
            total[text if status == 200 else f"{status} {text}"] += 1
            time.sleep(0.02)
        asked = sum(total.values())
        say(
            f"{asked} requests: "
            + ", ".join(f"{n * 100 / asked:.0f} % {who}" for who, n in total.most_common())
        )


def intruder() -> None:
    while True:
        status, text = ask("api", "/")
        say(f"api: {status or ''} {text}".rstrip() + f"; /public: {ask('api', '/public')[0]}; db: {ask_db()}")
        time.sleep(EVERY)


PARTS = {
    "frontend": frontend,
    "api": api,
    "db": db,
    "serve": lambda name: serve(lambda: (200, name)),
    "ask": ask_once,
    "idle": lambda: threading.Event().wait(),
    "load": load,
    "intruder": intruder,
}

if __name__ == "__main__":
    PARTS[sys.argv[1]](*sys.argv[2:])
