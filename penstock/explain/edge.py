"""Behind a Gateway's door: which of its listeners, hosts and routes a request belongs to.

A host belongs to the most specific listener of the port that covers it, before any route is looked at; over
TLS the client asks for it by the same name (SNI).
"""

from __future__ import annotations

from dataclasses import dataclass

from penstock.explain import lines
from penstock.explain.model import Outcome, Request
from penstock.explain.sides import Origins
from penstock.facts import Facts
from penstock.manifests.gateway_kinds import Gateway
from penstock.plan import Plan
from penstock.routing import hosts
from penstock.routing.edge import sections
from penstock.routing.http_policies import Target
from penstock.routing.model import HostRoutes, HttpChain


@dataclass(frozen=True, slots=True)
class Door:
    """The routes of the host, and what policies may be about besides. `outcome` ends the way."""

    text: str
    routes: HostRoutes | None = None
    targets: tuple[Target, ...] = ()
    outcome: Outcome | None = None
    origins: Origins = ()
    """The line of the listener."""


def door(facts: Facts, plan: Plan, name: str, request: Request) -> Door | None:
    """The way of `request` at the proxy's listener `name`; None where that knows no HTTP."""
    listener = next((each for each in plan.proxy.edge if each.name == name), None)
    chains = [c for c in listener.chains if isinstance(c, HttpChain)] if listener is not None else []
    if not chains:
        return None
    host = request.headers[":authority"].partition(":")[0].lower()
    chain = max(
        (c for c in chains if hosts.covers(c.sni, host)), key=lambda c: hosts.specific(c.sni), default=None
    )
    if chain is None:
        text = f"no listener shows a certificate for {host}: the connection is closed"
        return Door(text, outcome=Outcome(False, "NO_ROUTE"))
    table = next(each for each in plan.proxy.tables if each.name == chain.table)
    by_name = {each.host: each for each in table.hosts}
    owner = hosts.owner(host, by_name)
    targets = _targets(facts, name, host)
    assert listener is not None
    which, origins = lines.of_listener(facts, name, listener.port, host, listener.protocol)
    if owner is None:
        text = f"{which}: no route is for {host}"
        return Door(text, outcome=Outcome(False, "NO_ROUTE", code=404), origins=origins)
    if by_name[owner].misdirected:
        text = f"{which}: {host} is another listener's"
        return Door(text, outcome=Outcome(False, "NO_ROUTE", code=421), origins=origins)
    return Door(f"{which}: the routes of {owner or 'every host'}", by_name[owner], targets, origins=origins)


def _targets(facts: Facts, name: str, host: str) -> tuple[Target, ...]:
    """What an HTTPPolicy may mean here, the nearest first."""
    key = lines.gateway_of(name)
    document = facts.world.documents.get(key) if key is not None else None
    if key is None or document is None or not isinstance(document.value, Gateway):
        return ()
    port = name.rpartition("/")[0].rpartition(":")[2]
    return (*((key, each) for each in sections(document.value, int(port), host)), (key, None))
