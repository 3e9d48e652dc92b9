"""What a node remembers in its state directory: the numbers it gave out.

A file that cannot be understood costs the numbers, never the daemon: it is moved aside for whoever wants
to look, and the node begins anew. A file that cannot be *read* is an error, because beginning anew
would then overwrite numbers that are still good.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from pathlib import Path

import msgspec

from penstock.allocate import PREFIXES
from penstock.errors import HostError
from penstock.files import write_atomically
from penstock.world import Allocations

log = logging.getLogger(__name__)

FILE = "allocations.json"
FORMAT = 1


class StateError(HostError):
    """The state directory cannot be read or written."""


@dataclass(frozen=True, slots=True)
class _File:
    format: int
    allocations: Allocations


def load(directory: Path) -> Allocations:
    """What was last saved in `directory`; nothing if there is none. Raises StateError."""
    path = directory / FILE
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return Allocations()
    except OSError as error:
        raise StateError(f"cannot read {path}: {error.strerror}") from error
    try:
        return _decode(data)
    except (ValueError, RecursionError) as error:
        aside = path.with_name(FILE + ".corrupt")
        log.warning("%s is damaged (%s): moved to %s, numbers are given out anew", path, error, aside.name)
        try:
            path.replace(aside)
        except OSError as failure:
            raise StateError(f"cannot move {path} aside: {failure.strerror}") from failure
        return Allocations()


def save(directory: Path, allocations: Allocations) -> None:
    """Make `allocations` last in `directory`, which is created. Raises StateError; the old file stays."""
    data = msgspec.json.encode(_File(FORMAT, allocations))
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_atomically(directory / FILE, msgspec.json.format(data, indent=1) + b"\n")
    except OSError as error:
        raise StateError(f"cannot write {directory / FILE}: {error.strerror}") from error


def _decode(data: bytes) -> Allocations:
    """Raises ValueError (msgspec's errors are such) for what no daemon of this format can have written."""
    file = msgspec.json.decode(data, type=_File)
    if file.format != FORMAT:
        raise ValueError(f"format {file.format}, not {FORMAT}")
    found = file.allocations
    _check_numbers("identities", found.identities, 256)
    _check_numbers("listener_ports", found.listener_ports, 1)
    _check_numbers("service_ids", found.service_ids, 1)
    _check_numbers("prefixes", found.prefixes, *PREFIXES)
    for network in found.prefixes:
        ip_network(network)
    for name, port in found.node_ports.items():
        if not 1 <= port <= 65535:
            raise ValueError(f"node_ports: {name} has {port}")
    for address in (*found.vips.values(), *found.balancers.values(), *found.gateways.values()):
        ip_address(address)
    return found


def _check_numbers(what: str, numbers: Mapping[str, int], low: int, high: int = 65535) -> None:
    if len(set(numbers.values())) != len(numbers):
        raise ValueError(f"{what}: one number stands for two names")
    for name, number in numbers.items():
        if not low <= number <= high:
            raise ValueError(f"{what}: {name} has {number}")
