"""Waits until every node that shares the CA has a revocation in force."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from penstock.mtls import reports
from penstock.mtls.reports import NodeState
from penstock.mtls.revocation import Revoked
from penstock.mtls.rotate import changes
from penstock.mtls.show import moment


async def in_force(directory: Path, number: int, within: float) -> tuple[NodeState, ...]:
    """The nodes, as soon as all have it (`Revocations.number`), or as they are after `within` seconds.

    A node whose daemon is down is not waited for: only its start can change that.
    """
    folder = directory / reports.FOLDER
    folder.mkdir(mode=0o700, exist_ok=True)
    with suppress(TimeoutError):
        async with asyncio.timeout(within):
            async for _ in changes(folder):
                states = reports.read(directory)
                if all(s.report.revocations >= number or not s.alive for s in states):
                    return states
    return reports.read(directory)


def nodes(states: Iterable[NodeState], number: int) -> list[dict[str, str]]:
    """Each node, and what it lacks ("" if nothing)."""

    def missing(state: NodeState) -> str:
        if state.report.revocations >= number:
            return ""
        return "it has not answered" if state.alive else "its daemon does not run, and its Envoy goes on"

    return [{"node": state.report.node, "missing": missing(state)} for state in states]


def entries(revoked: Iterable[Revoked]) -> list[dict[str, Any]]:
    return [
        {
            "owner": each.owner,
            "serial": each.serial,
            "spiffe_id": each.spiffe_id,
            "revoked": moment(each.at),
            "not_after": moment(each.not_after),
        }
        for each in revoked
    ]
