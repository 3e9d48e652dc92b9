"""The few calls of libbpf that Penstock needs, through ctypes.

libbpf (Debian `libbpf1`, ≥ 1.1) loads the precompiled objects; links and maps are pinned in a bpffs of
our own, so that the datapath stands without a process. Every pointer has explicit types: ctypes
would cut an undeclared one to 32 bits.

Source: libbpf's bpf.h and libbpf.h; include/uapi/linux/bpf.h for the attach types.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Callable, Iterator
from enum import IntEnum
from functools import cache
from pathlib import Path

from penstock.errors import HostError


class BpfError(HostError):
    """The kernel or libbpf refused something; the message carries libbpf's own words where it has any."""


class AttachType(IntEnum):
    """enum bpf_attach_type, include/uapi/linux/bpf.h."""

    CGROUP_INET4_CONNECT = 10
    CGROUP_INET6_CONNECT = 11
    CGROUP_UDP4_SENDMSG = 14
    CGROUP_UDP6_SENDMSG = 15
    CGROUP_UDP4_RECVMSG = 19
    CGROUP_UDP6_RECVMSG = 20
    CGROUP_INET4_GETPEERNAME = 29
    CGROUP_INET6_GETPEERNAME = 30
    CGROUP_SOCK_OPS = 3
    SK_LOOKUP = 36
    XDP = 37
    TCX_INGRESS = 46
    TCX_EGRESS = 47


class _OpenOpts(ctypes.Structure):
    """The head of struct bpf_object_open_opts; `sz` tells libbpf where it ends."""

    _fields_ = (
        ("sz", ctypes.c_size_t),
        ("object_name", ctypes.c_char_p),
        ("relaxed_maps", ctypes.c_bool),
        ("pin_root_path", ctypes.c_char_p),
    )


class _LinkOpts(ctypes.Structure):
    """The head of struct bpf_link_create_opts, and zeros for the rest of it."""

    _fields_ = (("sz", ctypes.c_size_t), ("flags", ctypes.c_uint32), ("rest", ctypes.c_uint8 * 36))


XDP_FLAGS_SKB_MODE, XDP_FLAGS_DRV_MODE = 2, 4
"""include/uapi/linux/if_link.h: before each packet has a buffer of the stack, or as the driver gets it."""


class _TestRunOpts(ctypes.Structure):
    """struct bpf_test_run_opts."""

    _fields_ = (
        ("sz", ctypes.c_size_t),
        ("data_in", ctypes.c_void_p),
        ("data_out", ctypes.c_void_p),
        ("data_size_in", ctypes.c_uint32),
        ("data_size_out", ctypes.c_uint32),
        ("ctx_in", ctypes.c_void_p),
        ("ctx_out", ctypes.c_void_p),
        ("ctx_size_in", ctypes.c_uint32),
        ("ctx_size_out", ctypes.c_uint32),
        ("retval", ctypes.c_uint32),
        ("repeat", ctypes.c_int),
        ("duration", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("cpu", ctypes.c_uint32),
        ("batch_size", ctypes.c_uint32),
    )


_BATCH = 4096
"""Entries that are read at once; more than one bucket of any hash map has."""

_SAMPLE = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)

_SIGNATURES: dict[str, tuple[object, tuple[object, ...]]] = {
    "bpf_object__open_file": (ctypes.c_void_p, (ctypes.c_char_p, ctypes.POINTER(_OpenOpts))),
    "bpf_object__load": (ctypes.c_int, (ctypes.c_void_p,)),
    "bpf_object__close": (None, (ctypes.c_void_p,)),
    "bpf_object__next_program": (ctypes.c_void_p, (ctypes.c_void_p, ctypes.c_void_p)),
    "bpf_program__name": (ctypes.c_char_p, (ctypes.c_void_p,)),
    "bpf_program__fd": (ctypes.c_int, (ctypes.c_void_p,)),
    "bpf_link_create": (ctypes.c_int, (ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_void_p)),
    "bpf_link_update": (ctypes.c_int, (ctypes.c_int, ctypes.c_int, ctypes.c_void_p)),
    "bpf_obj_pin": (ctypes.c_int, (ctypes.c_int, ctypes.c_char_p)),
    "bpf_obj_get": (ctypes.c_int, (ctypes.c_char_p,)),
    "bpf_map_update_elem": (
        ctypes.c_int,
        (ctypes.c_int, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_uint64),
    ),
    "bpf_map_lookup_elem": (ctypes.c_int, (ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)),
    "bpf_map_delete_elem": (ctypes.c_int, (ctypes.c_int, ctypes.c_char_p)),
    "bpf_map_get_next_key": (ctypes.c_int, (ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)),
    "bpf_map_lookup_batch": (ctypes.c_int, (ctypes.c_int, *[ctypes.c_void_p] * 6)),
    "bpf_prog_test_run_opts": (ctypes.c_int, (ctypes.c_int, ctypes.POINTER(_TestRunOpts))),
    "ring_buffer__new": (ctypes.c_void_p, (ctypes.c_int, _SAMPLE, ctypes.c_void_p, ctypes.c_void_p)),
    "ring_buffer__epoll_fd": (ctypes.c_int, (ctypes.c_void_p,)),
    "ring_buffer__consume": (ctypes.c_int, (ctypes.c_void_p,)),
    "ring_buffer__free": (None, (ctypes.c_void_p,)),
    "libbpf_set_print": (ctypes.c_void_p, (ctypes.c_void_p,)),
    "libbpf_num_possible_cpus": (ctypes.c_int, ()),
    "libbpf_version_string": (ctypes.c_char_p, ()),
}


@cache
def _lib() -> ctypes.CDLL:
    try:
        lib = ctypes.CDLL("libbpf.so.1", use_errno=True)
    except OSError as e:
        raise BpfError(f"libbpf.so.1 cannot be loaded: {e}", hint="apt-get install libbpf1") from e
    for name, (restype, argtypes) in _SIGNATURES.items():
        function = getattr(lib, name)
        function.restype = restype
        function.argtypes = argtypes
    lib.libbpf_set_print(None)
    return lib


def _check(result: int, doing: str) -> int:
    if result < 0:
        number = ctypes.get_errno() or -result
        raise BpfError(f"{doing}: {os.strerror(number)}") from OSError(number, os.strerror(number))
    return result


def version() -> str:
    """libbpf's version, such as ``v1.1``."""
    return str(_lib().libbpf_version_string().decode())


def possible_cpus() -> int:
    return _check(_lib().libbpf_num_possible_cpus(), "count the possible CPUs")


class BpfObject:
    """A loaded object file; its maps are pinned under `pin_root`, or taken from there if they stand."""

    def __init__(self, path: Path, pin_root: Path) -> None:
        lib = _lib()
        opts = _OpenOpts(sz=ctypes.sizeof(_OpenOpts), pin_root_path=os.fsencode(pin_root))
        self._handle = lib.bpf_object__open_file(os.fsencode(path), ctypes.byref(opts))
        if not self._handle:
            raise BpfError(f"open {path.name}: {os.strerror(ctypes.get_errno())}", hint="make bpf")
        try:
            _check(lib.bpf_object__load(self._handle), f"load {path.name}")
        except BpfError as e:
            self.close()
            # The commonest cause: maps of another layout stand pinned, and libbpf does not reuse them.
            e.hint = "if another version of Penstock ran here, take it down first: penstock down"
            raise

    def programs(self) -> dict[str, int]:
        """Program name → file descriptor, owned by this object."""
        lib = _lib()
        found: dict[str, int] = {}
        program = lib.bpf_object__next_program(self._handle, None)
        while program:
            found[lib.bpf_program__name(program).decode()] = lib.bpf_program__fd(program)
            program = lib.bpf_object__next_program(self._handle, program)
        return found

    def close(self) -> None:
        if self._handle:
            _lib().bpf_object__close(self._handle)
            self._handle = None


def pin(fd: int, path: Path) -> None:
    _check(_lib().bpf_obj_pin(fd, os.fsencode(path)), f"pin {path}")


def open_pin(path: Path) -> int:
    """A new file descriptor of the object pinned at `path`."""
    return _check(_lib().bpf_obj_get(os.fsencode(path)), f"open the pin {path}")


def create_link(program: int, target: int, attach: AttachType) -> int:
    """Attach `program` to an interface index (tcx), or to the file descriptor of a cgroup or namespace.

    Returns the link's descriptor.
    """
    return _check(_lib().bpf_link_create(program, target, attach, None), f"attach {attach.name} to {target}")


def create_xdp_link(program: int, interface: int) -> int:
    """Attach an XDP program, in the driver if it can, else in front of the stack; the link's descriptor."""
    native = _LinkOpts(sz=ctypes.sizeof(_LinkOpts), flags=XDP_FLAGS_DRV_MODE)
    link = int(_lib().bpf_link_create(program, interface, AttachType.XDP, ctypes.byref(native)))
    if link >= 0:
        return link
    generic = _LinkOpts(sz=ctypes.sizeof(_LinkOpts), flags=XDP_FLAGS_SKB_MODE)
    found = _lib().bpf_link_create(program, interface, AttachType.XDP, ctypes.byref(generic))
    return _check(found, f"attach XDP to {interface}")


def update_link(link: int, program: int) -> None:
    """Swap the program behind a link at once; no packet passes without one."""
    _check(_lib().bpf_link_update(link, program, None), "replace the program of a link")


class BpfMap:
    """A pinned map with fixed key and value sizes in bytes."""

    def __init__(self, path: Path, key_size: int, value_size: int) -> None:
        self.path = path
        self.fd = open_pin(path)
        self.key_size = key_size
        self.value_size = value_size

    def put(self, key: bytes, value: bytes) -> None:
        _check(_lib().bpf_map_update_elem(self.fd, key, value, 0), f"write to the map {self.path.name}")

    def get(self, key: bytes) -> bytes | None:
        buffer = ctypes.create_string_buffer(self.value_size)
        if _lib().bpf_map_lookup_elem(self.fd, key, buffer) < 0:
            return None
        return buffer.raw

    def delete(self, key: bytes) -> None:
        """Remove `key`; absent is fine."""
        _lib().bpf_map_delete_elem(self.fd, key)

    def keys(self) -> Iterator[bytes]:
        """Every key; entries that come or go meanwhile may be missed."""
        lib = _lib()
        following = ctypes.create_string_buffer(self.key_size)
        key: bytes | None = None
        while lib.bpf_map_get_next_key(self.fd, key, following) >= 0:
            key = following.raw
            yield key

    def items(self) -> dict[bytes, bytes]:
        found = {}
        for key in list(self.keys()):
            value = self.get(key)
            if value is not None:
                found[key] = value
        return found

    def count(self) -> int:
        """How many entries there are now, of a hash map; far quicker than going through its keys."""
        lib, found = _lib(), 0
        keys = ctypes.create_string_buffer(_BATCH * self.key_size)
        values = ctypes.create_string_buffer(_BATCH * self.value_size)
        place, some = ctypes.c_uint32(), ctypes.c_uint32(_BATCH)
        start: object = None
        while True:
            some.value = _BATCH
            more = lib.bpf_map_lookup_batch(
                self.fd, start, ctypes.byref(place), keys, values, ctypes.byref(some), None
            )
            if more < 0 and ctypes.get_errno() != errno.ENOENT:
                _check(more, f"read the map {self.path.name}")
            found += some.value
            if more < 0:
                return found
            start = ctypes.byref(place)

    def close(self) -> None:
        os.close(self.fd)


class RingBuffer:
    """Samples of a BPF ring buffer, handed to `on_sample` when `consume` is called."""

    def __init__(self, map_fd: int, on_sample: Callable[[bytes], None]) -> None:
        def sample(_ctx: object, data: int, size: int) -> int:
            on_sample(ctypes.string_at(data, size))
            return 0

        self._callback = _SAMPLE(sample)
        self._handle = _lib().ring_buffer__new(map_fd, self._callback, None, None)
        if not self._handle:
            raise BpfError(f"open the ring buffer: {os.strerror(ctypes.get_errno())}")

    @property
    def fd(self) -> int:
        """Readable when samples wait (an epoll descriptor)."""
        return int(_lib().ring_buffer__epoll_fd(self._handle))

    def consume(self) -> int:
        return _check(_lib().ring_buffer__consume(self._handle), "read the ring buffer")

    def close(self) -> None:
        if self._handle:
            _lib().ring_buffer__free(self._handle)
            self._handle = None


def test_run(
    program: int, packet: bytes, context: bytes = b"", *, repeat: int = 1, duration: list[int] | None = None
) -> tuple[int, bytes, bytes]:
    """Run a program (BPF_PROG_TEST_RUN): its return value, the packet and the context after.

    With `repeat` it runs so often on the same packet; `duration` gets the mean of its runs in ns.
    """
    out = ctypes.create_string_buffer(len(packet) + 256)
    data = ctypes.create_string_buffer(packet, len(packet))
    ctx_in = ctypes.create_string_buffer(context, len(context)) if context else None
    ctx_out = ctypes.create_string_buffer(len(context)) if context else None
    opts = _TestRunOpts(
        sz=ctypes.sizeof(_TestRunOpts),
        data_in=ctypes.cast(data, ctypes.c_void_p),
        data_out=ctypes.cast(out, ctypes.c_void_p),
        data_size_in=len(packet),
        data_size_out=len(out),
        ctx_in=ctypes.cast(ctx_in, ctypes.c_void_p) if ctx_in else None,
        ctx_out=ctypes.cast(ctx_out, ctypes.c_void_p) if ctx_out else None,
        ctx_size_in=len(context),
        ctx_size_out=len(context),
        repeat=repeat,
    )
    _check(_lib().bpf_prog_test_run_opts(program, ctypes.byref(opts)), "run a program on a packet")
    if duration is not None:
        duration.append(int(opts.duration))
    return opts.retval, out.raw[: opts.data_size_out], ctx_out.raw if ctx_out else b""
