"""A network namespace and a bpffs of the session's own, with the programs loaded.

The devices only lend their indices: nothing is attached, and no packet is really sent.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator

import pytest
from bpf_kernel import Kernel
from pyroute2 import IPRoute

from penstock.redirect.datapath import take_down
from penstock.redirect.netns import CLONE_NEWNET, entered

DEVICES = ("wa", "wb", "eth", "peer-of-eth")


@pytest.fixture(scope="session")
def devices() -> Iterator[dict[str, int]]:
    """A network namespace for the whole session, with a device for each name; it ends with its last user."""
    home = f"/proc/self/fd/{os.open('/proc/thread-self/ns/net', os.O_RDONLY)}"
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNET) != 0:
        pytest.fail(f"a network namespace cannot be made: {os.strerror(ctypes.get_errno())}")
    there = f"/proc/self/fd/{os.open('/proc/thread-self/ns/net', os.O_RDONLY)}"
    with open(home, "rb") as back:
        libc.setns(back.fileno(), CLONE_NEWNET)
    with entered(there):
        with IPRoute() as ip:
            ip.link("set", index=1, state="up")
            for name, peer in zip(DEVICES[::2], DEVICES[1::2], strict=True):
                ip.link("add", ifname=name, kind="veth", peer=peer)
            found = {name: ip.link_lookup(ifname=name)[0] for name in DEVICES}
        yield found
    os.close(int(there.rpartition("/")[2]))
    os.close(int(home.rpartition("/")[2]))


@pytest.fixture(scope="session")
def loaded(devices: dict[str, int], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kernel]:
    pins = tmp_path_factory.mktemp("bpf") / "pins"
    try:
        kernel = Kernel(pins, devices)
        yield kernel
        kernel.close()
    finally:
        take_down(pins)


@pytest.fixture
def kernel(loaded: Kernel) -> Kernel:
    """The programs on empty maps."""
    loaded.forget()
    return loaded
