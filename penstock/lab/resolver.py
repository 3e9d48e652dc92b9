"""What `ip netns exec` puts in the place of /etc/resolv.conf: workloads of a lab ask the node's own DNS.

Only a file that a lab has written is written over or taken away again; it says so in its first line.

Source: ip-netns(8), resolv.conf(5).
"""

from __future__ import annotations

import errno
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path

from penstock.dns.model import OWN_ADDRESSES
from penstock.lab.errors import LabError
from penstock.lab.spec import LabWorkload

DIRECTORY = Path("/etc/netns")
_OURS = "# Made by penstock lab; `penstock lab down` takes it away.\n"


def write(workload: LabWorkload) -> None:
    """Raises LabError. A file of somebody else stays, and so does an /etc that cannot be written to."""
    path = DIRECTORY / workload.netns.name / "resolv.conf"
    versions = {address.version for address in workload.addresses}
    servers = [each for each in OWN_ADDRESSES if ip_address(each).version in versions]
    lines = [f"nameserver {server}\n" for server in servers]
    lines.append(f"search {workload.namespace}.svc.cluster.local svc.cluster.local cluster.local\n")
    try:
        if path.exists() and not path.read_text().startswith(_OURS):
            return
        with suppress(FileExistsError):
            DIRECTORY.mkdir(mode=0o755)
        path.parent.mkdir(mode=0o755, exist_ok=True)
        path.write_text(_OURS + "".join(lines))
    except OSError as error:
        if error.errno != errno.EROFS:
            raise LabError(f"cannot write {path}: {error.strerror}") from error


def remove(netns: str) -> None:
    """What `write` has made for a namespace, and folders that are empty then."""
    path = DIRECTORY / netns / "resolv.conf"
    with suppress(OSError):
        if path.read_text().startswith(_OURS):
            path.unlink()
            path.parent.rmdir()


def tidy() -> None:
    """Nothing is left where nobody has written anything. Only under the lock of labs."""
    with suppress(OSError):
        DIRECTORY.rmdir()
