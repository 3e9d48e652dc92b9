"""The sockets that the kernel steers DNS to, held by the daemon while nobody need answer there.

A node whose workloads ask nothing needs no DNS proxy. Questions wait in these sockets; the first one has the
proxy started, which inherits them and reads what waits. The daemon keeps them too: what is asked while one
proxy follows another is not lost.
"""

from __future__ import annotations

import asyncio
import select
import socket

from penstock.dns.sockets import connections, datagrams

FAMILIES = (socket.AF_INET, socket.AF_INET6)


class Door:
    """Open at `port` of the loopback addresses. Raises OSError, as where the proxy of before still is."""

    def __init__(self, port: int) -> None:
        self.port = port
        self._sockets: list[socket.socket] = []
        try:
            for family in FAMILIES:
                self._sockets.append(datagrams(family, port))
                self._sockets.append(connections(family, port))
        except OSError:
            self.close()
            raise

    @property
    def fds(self) -> tuple[int, ...]:
        return tuple(each.fileno() for each in self._sockets)

    @property
    def asked(self) -> bool:
        """Whether somebody waits."""
        poll = select.poll()
        for fd in self.fds:
            poll.register(fd, select.POLLIN)
        return bool(poll.poll(0))

    async def watch(self, stirred: asyncio.Event) -> None:
        """Until `stirred` is set, which a question does, too."""
        loop = asyncio.get_running_loop()
        for fd in self.fds:
            loop.add_reader(fd, stirred.set)
        try:
            await stirred.wait()
        finally:
            for fd in self.fds:
                loop.remove_reader(fd)

    def close(self) -> None:
        for each in self._sockets:
            each.close()
        self._sockets = []
