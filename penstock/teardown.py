"""All that a daemon has put on its node goes. It imports little: it is run often, and does little."""

from __future__ import annotations

import asyncio
import os
import shutil
from contextlib import suppress
from pathlib import Path

from penstock import rundir
from penstock.control import socket_path
from penstock.dns.place import stop as stop_dns
from penstock.envoy.bootstrap import clients_socket, xds_socket
from penstock.envoy.process import EnvoyProcess
from penstock.hostnames import HostsFiles
from penstock.redirect.datapath import take_down
from penstock.redirect.host import HostSettings
from penstock.redirect.leads import Leads


def tear_down(run_dir: Path) -> None:
    """Remove programs, maps, rules, routes, sysctls and Envoy of `run_dir`, and it too; twice is fine.

    Raises HostError while a daemon runs there.
    """
    if not run_dir.is_dir():
        return
    lock = rundir.lock(run_dir)
    try:
        asyncio.run(EnvoyProcess(run_dir, node="").stop())
        stop_dns(run_dir)
        take_down(rundir.pins(run_dir))
        host = HostSettings(rundir.host_record(run_dir))
        host.down()
        host.close()
        HostsFiles(rundir.hosts_record(run_dir)).forget()
        Leads(rundir.leads_record(run_dir)).forget()
        for left in (socket_path(run_dir), xds_socket(run_dir), clients_socket(run_dir)):
            left.unlink(missing_ok=True)
        shutil.rmtree(run_dir / "envoy", ignore_errors=True)
        shutil.rmtree(run_dir / "dns", ignore_errors=True)
        (run_dir / "dns.log").unlink(missing_ok=True)
        socket, inner = rundir.workload_sockets(run_dir)
        socket.unlink(missing_ok=True)
        shutil.rmtree(inner, ignore_errors=True)
    finally:
        os.close(lock)
        (run_dir / "daemon.lock").unlink(missing_ok=True)
    # What others keep there is theirs.
    with suppress(OSError):
        run_dir.rmdir()
