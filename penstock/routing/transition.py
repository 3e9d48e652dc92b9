"""What the proxy holds on the way from one model to the next, so that no request is judged without rights.

Rights stand in the tables, by class of endpoint; endpoints come another way. An endpoint that could be chosen
before its rights are there, or after they have gone, would answer 403. So on the way

- an endpoint that goes is gone at once, one that comes waits until the tables have its rights;
- only where all endpoints of a cluster are replaced, the old ones stay that long, and the tables keep their
  rights beside the new ones.

Nobody gets a right by that: the old endpoints keep theirs only if no policy has changed, and an address whose
class is another now is not kept.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import TypeVar

from penstock.routing.model import HostTable, ProxyCluster, ProxyEndpoint, ProxyModel, Rights, ServiceTable

Table = TypeVar("Table", ServiceTable, HostTable)


def between(old: ProxyModel, new: ProxyModel, *, same_policies: bool) -> ProxyModel | None:
    """The model to hold until the tables of `new` are in force; None if `new` itself will do."""
    if old.workloads == new.workloads and _same_rights(old, new):
        # Whoever comes is judged by the rights that are there, and whoever goes was.
        return None
    before = {cluster.name: cluster for cluster in old.clusters}
    leaving: set[str] = set()
    clusters = tuple(_cluster(before.get(c.name), c, leaving, same_policies) for c in new.clusters)
    workloads = _kept(old.workloads, new.workloads)
    if workloads == new.workloads and all(a is b for a, b in zip(clusters, new.clusters, strict=True)):
        return None
    rights_of = {table.name: table.rights for each in (old.services, old.tables) for table in each}

    def with_leaving(table: ServiceTable | HostTable) -> tuple[Rights, ...]:
        return (*table.rights, *_of(rights_of.get(table.name, ()), leaving)) if leaving else table.rights

    return replace(
        new,
        clusters=clusters,
        workloads=workloads,
        services=tuple(_wider(table, with_leaving(table)) for table in new.services),
        tables=tuple(_wider(table, with_leaving(table)) for table in new.tables),
    )


def _same_rights(old: ProxyModel, new: ProxyModel) -> bool:
    """Whether tables that are there keep the rights that they have."""
    before = {table.name: table.rights for each in (old.services, old.tables) for table in each}
    return (old.workload_rights, old.mirror_rights) == (new.workload_rights, new.mirror_rights) and all(
        before.get(table.name, table.rights) == table.rights
        for each in (new.services, new.tables)
        for table in each
    )


def _cluster(
    old: ProxyCluster | None, new: ProxyCluster, leaving: set[str], same_policies: bool
) -> ProxyCluster:
    if old is None or old.endpoints == new.endpoints:
        return new
    kept = _kept(old.endpoints, new.endpoints)
    here = {(e.address, e.port) for e in new.endpoints}
    if not kept and new.endpoints and same_policies:
        kept = tuple(e for e in old.endpoints if (e.address, e.port) not in here)
        leaving |= {e.policy_class for e in kept}
    return new if kept == new.endpoints else replace(new, endpoints=kept)


def _kept(old: Iterable[ProxyEndpoint], new: Iterable[ProxyEndpoint]) -> tuple[ProxyEndpoint, ...]:
    """Those of `new` that were there, whatever their weight was."""
    known = {replace(endpoint, weight=1) for endpoint in old}
    return tuple(endpoint for endpoint in new if replace(endpoint, weight=1) in known)


def _of(rights: Iterable[Rights], classes: set[str]) -> tuple[Rights, ...]:
    """What concerns these classes of endpoints."""
    found = (replace(r, destinations=tuple(d for d in r.destinations if d in classes)) for r in rights)
    return tuple(each for each in found if each.destinations)


def _wider(table: Table, rights: tuple[Rights, ...]) -> Table:
    return table if rights == table.rights else replace(table, rights=rights)
