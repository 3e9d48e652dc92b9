"""The DNS proxy's process: ``python -m penstock.dns``, started by the daemon (penstock.dns.place).

As root it opens maps and sockets, then it gives that up. It ends by SIGTERM, or when a daemon says so.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import socket
from pathlib import Path
from typing import Any

from penstock.dns import messages, rights
from penstock.dns.kernel import Kernel
from penstock.dns.learned import Learned
from penstock.dns.model import DnsPlan
from penstock.dns.place import Choice, journal_of, pid_file, socket_of
from penstock.dns.server import Server, Settings
from penstock.dns.wire import Ear

_SO_NETNS_COOKIE = 71


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser("penstock.dns")
    parser.add_argument("--run-dir", type=Path, required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--upstream", action="append", default=[])
    parser.add_argument("--min-ttl", type=int, required=True)
    parser.add_argument("--grace", type=float, required=True)
    parser.add_argument("--source-ports", type=int, nargs=2, required=True)
    parser.add_argument("--sockets", type=int, nargs=4, required=True)
    return parser.parse_args()


def _place() -> str:
    """This boot and network namespace: what was learned in another says nothing about interfaces here."""
    with socket.socket() as any_socket:
        cookie = int.from_bytes(any_socket.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8), "little")
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot}-{cookie}"


async def _serve(arguments: argparse.Namespace) -> None:
    run_dir: Path = arguments.run_dir
    choice = Choice(
        tuple(arguments.upstream), arguments.min_ttl, arguments.grace, tuple(arguments.source_ports)
    )
    settings = Settings(arguments.port, choice.upstreams, choice.min_ttl, choice.source_ports)
    learned = Learned(Kernel(run_dir / "bpf"), journal_of(run_dir, _place()), choice.grace)
    stop, told = asyncio.Event(), asyncio.Event()
    ear: Ear

    def tell(record: dict[str, Any]) -> None:
        ear.tell(record)

    sockets = [socket.socket(fileno=fd) for fd in arguments.sockets]
    server = Server(settings, learned, tell, sockets)

    def use(plan: DnsPlan) -> None:
        server.use(plan)
        told.set()

    directory = socket_of(run_dir).parent
    for old in directory.glob("names-*"):
        if old != journal_of(run_dir, _place()):
            old.unlink()
    os.chown(directory, rights.UID, rights.UID)
    for mine in directory.glob("names-*"):
        os.chown(mine, rights.UID, rights.UID)
    pid_file(run_dir).write_text(str(os.getpid()))
    messages.load()
    # The executor's module is read when it is first used.
    await asyncio.to_thread(os.getpid)
    rights.give_up()
    learned.open()

    def state() -> dict[str, Any]:
        return {
            "pid": os.getpid(),
            "port": settings.port,
            "upstreams": list(settings.upstreams),
            "in_flight": server.in_flight,
            "answers": dict(server.counters),
            "names": len({name for known in learned.recorded.entries.values() for name in known.names}),
            "addresses": len(learned.recorded.entries),
            "too_many_lists": len(learned.too_many),
            "records_lost": ear.lost,
            "revision": ear.revision,
        }

    ear = Ear(
        socket_of(run_dir),
        choice.text(arguments.port),
        use=use,
        answers={"names": lambda: list(learned.shown()), "state": state},
        stop=stop.set,
    )
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    sweeping = asyncio.create_task(learned.sweep())
    await ear.start()
    ending = asyncio.create_task(stop.wait())
    # What waits in the sockets is read when it can be judged.
    serving = asyncio.create_task(server.start(told))
    done, _ = await asyncio.wait({sweeping, serving, ending}, return_when=asyncio.FIRST_COMPLETED)
    for task in done:
        task.result()
    os._exit(0)


if __name__ == "__main__":
    asyncio.run(_serve(_arguments()))
