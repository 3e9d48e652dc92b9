"""Network namespaces as names under /run/netns, the way iproute2 keeps them.

Entering is setns(2) on the calling *thread* and back again, so a process of many threads may use it;
mounts are never touched (`ip netns exec` remounts /sys and hides bpffs and cgroups). A socket or a
child process keeps the namespace it was made in, which is all that the callers here need.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import subprocess
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from penstock.lab.errors import LabError
from penstock.redirect.netns import CLONE_NEWNET
from penstock.redirect.netns import entered as enter

DIRECTORY = Path("/run/netns")

MS_BIND, MS_REC, MS_SHARED = 0x1000, 0x4000, 0x100000
MNT_DETACH = 2

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mount.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_void_p]


def path_of(name: str) -> Path:
    return DIRECTORY / name


def create(names: Sequence[str]) -> None:
    """Make network namespaces and keep each by a bind mount at /run/netns/NAME.

    Raises LabError if a name is taken or the kernel refuses; those made before it stay.
    """
    _prepare_directory()
    failure: list[BaseException] = []

    def work() -> None:
        # The thread ends in the last namespace that it made, and with the thread that reference goes.
        try:
            for name in names:
                path = path_of(name)
                path.touch(mode=0o444, exist_ok=False)
                _check(_libc.unshare(CLONE_NEWNET), "unshare")
                _mount("/proc/thread-self/ns/net", str(path), MS_BIND)
        except BaseException as error:  # noqa: BLE001 - carried to the caller's thread
            failure.append(error)

    thread = threading.Thread(target=work, name="netns-create")
    thread.start()
    thread.join()
    if failure:
        match failure[0]:
            case FileExistsError() as error:
                raise LabError(f"network namespace {error.filename} exists already") from error
            case OSError() as error:
                hint = "run it as root" if os.geteuid() else ""
                raise LabError(f"cannot make network namespaces: {error}", hint=hint) from error
            case error:
                raise error


def remove(name: str) -> None:
    """Take the name away. The kernel ends the namespace once no process is left in it."""
    path = path_of(name)
    # EINVAL: the name was made but nothing was mounted on it yet.
    _libc.umount2(os.fsencode(path), MNT_DETACH)
    path.unlink(missing_ok=True)


@contextmanager
def entered(netns: str | Path) -> Iterator[None]:
    """As `penstock.redirect.netns.entered`. Raises LabError if there is no such namespace."""
    if not Path(netns).exists():
        raise LabError(f"no network namespace {netns}")
    with enter(netns):
        yield


def run_in(netns: str | Path, argv: Sequence[str], **popen: Any) -> subprocess.Popen[Any]:
    """Start `argv` inside `netns`; the arguments of subprocess.Popen apply."""
    with entered(netns):
        return subprocess.Popen(argv, **popen)


def replace_by(netns: str | Path, argv: Sequence[str]) -> None:
    """Become `argv` inside `netns` (exec: does not return). Raises OSError if it cannot be run."""
    with entered(netns):
        os.execvp(argv[0], list(argv))


def write_sysctls(settings: Iterable[tuple[str, str]]) -> None:
    """Set net sysctls (``net/ipv4/ip_forward``) of the namespace that the thread is in.

    One that this kernel does not have (no IPv6, no bridge) is passed over.
    """
    for name, value in settings:
        with suppress(FileNotFoundError):
            Path("/proc/sys", name).write_text(value)


def processes_in(names: Iterable[str]) -> set[int]:
    """Process ids whose main thread is in one of the namespaces."""
    inodes = set()
    for name in names:
        with suppress(OSError):
            inodes.add(f"net:[{os.stat(path_of(name)).st_ino}]")
    found = set()
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            # Gone meanwhile, or a zombie: it has no namespace any more.
            with suppress(OSError):
                if os.readlink(f"/proc/{entry}/ns/net") in inodes:
                    found.add(int(entry))
    return found


def end_processes(names: Sequence[str], grace: float = 2.0) -> None:
    """End every process in the namespaces: SIGTERM, after `grace` seconds SIGKILL, until none is left.

    This process and its ancestors are spared (somebody may take a lab down from a shell inside it).
    """
    spared = _ancestors()
    number = signal.SIGTERM
    for _ in range(5):
        pids = processes_in(names) - spared
        if not pids:
            return
        _signal_and_wait(pids, number, grace)
        number = signal.SIGKILL
    raise LabError(f"processes do not end: {sorted(processes_in(names) - spared)}")


def _signal_and_wait(pids: set[int], number: signal.Signals, seconds: float) -> None:
    poller = select.poll()
    waiting: set[int] = set()
    for pid in pids:
        with suppress(ProcessLookupError):
            fd = os.pidfd_open(pid)
            waiting.add(fd)
            poller.register(fd, select.POLLIN)
            signal.pidfd_send_signal(fd, number)
    deadline = time.monotonic() + seconds
    everyone = set(waiting)
    try:
        while waiting and (left := deadline - time.monotonic()) > 0:
            for fd, _ in poller.poll(left * 1000):
                poller.unregister(fd)
                waiting.discard(fd)
    finally:
        for fd in everyone:
            os.close(fd)


def _ancestors() -> set[int]:
    pid, found = os.getpid(), set()
    while pid > 1:
        found.add(pid)
        # The fields after the command, which may itself hold spaces and brackets: state, parent, …
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return found


def _prepare_directory() -> None:
    """As `ip netns add` does: a shared mount, so that a name removed here is removed everywhere."""
    DIRECTORY.mkdir(mode=0o755, exist_ok=True)
    try:
        _mount("", str(DIRECTORY), MS_SHARED | MS_REC)
    except OSError:
        _mount(str(DIRECTORY), str(DIRECTORY), MS_BIND | MS_REC)
        _mount("", str(DIRECTORY), MS_SHARED | MS_REC)


def _mount(source: str, target: str, flags: int) -> None:
    _check(_libc.mount(os.fsencode(source), os.fsencode(target), b"none", flags, None), f"mount {target}")


def _check(result: int, what: str) -> None:
    if result:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")
