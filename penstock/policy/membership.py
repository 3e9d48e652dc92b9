"""The members of a World: its workloads, and each node's ingress, with their identities and labels. Pure.

Of one World after the other only what has changed is looked at (`followed_members`), as long as nobody got
an identity or ports that nobody had before.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Collection, Mapping

from penstock.manifests.document import Document, ObjectKey, place
from penstock.manifests.kinds import Namespace, Node, Workload
from penstock.policy.identities import (
    INGRESS_SUBJECT,
    Member,
    Members,
    Ports,
    identity_text,
    meshed_nodes,
    names_text,
    node_names,
)
from penstock.policy.ingress import ACCOUNT, has_edge, ingress_document, of_node
from penstock.policy.labels import (
    DNS,
    DNS_LABELS,
    HOST,
    INGRESS,
    REMOTE_NODE,
    RESERVED,
    WORLD_LABELS,
    LabelIndex,
    reserved_labels,
    workload_labels,
)
from penstock.policy.policies import Policies, policies
from penstock.policy.prefixes import PrefixIndex
from penstock.world import World, parse_address


def members(world: World, read: Policies | None = None, before: Members | None = None) -> Members:
    """Resolve every Workload; those whose identity has no number yet are left out.

    `before` are the members of a World on the same node with the same numbers of identities and the same
    Namespaces: a workload that is as it was keeps its very Member, so that others see what has changed.
    """
    read = read or policies(world)
    meshed = meshed_nodes(world)
    known = {m.document.key: m for m in before.all} if before is not None else {}
    labels: dict[int, Mapping[str, str]] = {number: reserved_labels(number) for number in RESERVED}
    if world.settings.dns_addresses:
        labels[DNS] = DNS_LABELS
    port_sets: dict[int, list[Ports]] = {}
    found: list[tuple[Document, Workload, int, Ports, Member | None]] = []
    for document, workload in world.of_kind(Workload):
        old = known.get(document.key)
        if old is not None and old.document is document:
            identity, ports = old.identity, old.ports
        else:
            old = None
            number = world.allocations.identities.get(identity_text(document, workload))
            if number is None:
                continue
            identity = number
            ports = tuple(sorted((p.name, p.container_port, str(p.protocol)) for p in workload.spec.ports))
        sets = port_sets.setdefault(identity, [])
        if ports not in sets:
            sets.append(ports)
            sets.sort()
        found.append((document, workload, identity, ports, old))
    namespaces = {d.key.name: d.metadata.labels for d, _ in world.of_kind(Namespace)}
    networks = {
        network: number
        for network in read.networks
        if (number := world.allocations.prefixes.get(str(network))) is not None
    }
    labels.update(dict.fromkeys(networks.values(), WORLD_LABELS))
    nodes = {
        number: name
        for name, text in node_names(world, read).items()
        if (number := world.allocations.prefixes.get(text)) is not None
    }
    if read.nodes:
        of_nodes = {d.key.name: d.metadata.labels for d, _ in world.of_kind(Node)}
        labels[HOST] = {**of_nodes.get(world.node, {}), **reserved_labels(HOST)}
        for number, name in nodes.items():
            labels[number] = {**of_nodes[name], **reserved_labels(REMOTE_NODE)}

    result = []
    owners: dict[int, ObjectKey] = {}
    for document, workload, identity, ports, old in found:
        own = labels.get(identity)
        if own is None:
            own = labels[identity] = workload_labels(
                document.key.namespace,
                workload.spec.service_account_name,
                workload.metadata.labels,
                namespaces.get(document.key.namespace, {}),
            )
        local = _is_local(workload, world)
        attachment = world.attachments.get((document.key.namespace, document.key.name)) if local else None
        # Packets say which namespace they come from, not which program of it: the first name is its identity.
        if attachment is not None and owners.setdefault(attachment.cookie, document.key) != document.key:
            attachment = None
        subject = identity * 256 + port_sets[identity].index(ports) % 256
        mesh = not local and workload.spec.node in meshed
        if old is not None and (old.subject, old.mesh, old.attachment) == (subject, mesh, attachment):
            result.append(old)
            continue
        addresses = tuple(parse_address(a) for a in workload.spec.addresses)
        result.append(
            Member(
                document=document,
                identity=identity,
                subject=subject,
                labels=own,
                service_account=workload.spec.service_account_name,
                local=local,
                mesh=mesh,
                addresses=addresses or (attachment.addresses if attachment else ()),
                ports=ports,
                attachment=attachment,
                netns=workload.spec.netns,
            )
        )
    lists = {
        wanted: number
        for wanted in read.names
        if (number := world.allocations.prefixes.get(names_text(wanted))) is not None
    }
    index = LabelIndex(labels, PrefixIndex(networks), nodes, lists)
    return Members(tuple(result), index, ingress_members(world))


def _is_local(workload: Workload, world: World) -> bool:
    here = workload.spec.netns is not None or workload.spec.container is not None
    return here and workload.spec.node in (None, world.node)


def followed_members(world: World, before: Members, changed: Collection[ObjectKey]) -> Members | None:
    """`before` with the workloads `changed` as they are in `world`, all else of which is the same.

    None if the shape changes (an identity or a subject comes or goes), or if one shares its namespace.
    """
    meshed = meshed_nodes(world)
    cookies = Counter(each.cookie for each in world.attachments.values())
    for key in changed:
        attachment = world.attachments.get((key.namespace, key.name))
        if attachment is not None and cookies[attachment.cookie] > 1:
            return None
    everyone = list(before.all)
    of_identity = dict(before.by_identity)
    for key in changed:
        at = bisect_left(everyone, place(key), key=lambda m: place(m.document.key))
        old = everyone[at] if at < len(everyone) and everyone[at].document.key == key else None
        new = _member(world, key, before, meshed)
        if new is None and key in world.documents:
            return None
        everyone[at : at + (old is not None)] = [] if new is None else [new]
        for member, listed in ((old, ()), (new, (new,))):
            if member is not None:
                rest = tuple(m for m in of_identity.get(member.identity, ()) if m is not old)
                of_identity[member.identity] = tuple(
                    sorted((*rest, *listed), key=lambda m: place(m.document.key))
                )
    touched = {i for i, listed in of_identity.items() if before.by_identity.get(i) is not listed}
    for identity in touched:
        sets = [
            sorted({m.ports for m in each.get(identity, ())}) for each in (before.by_identity, of_identity)
        ]
        if sets[0] != sets[1]:
            return None
    speaking = dict(before.representatives())
    speaking.update({m.subject: m for identity in sorted(touched) for m in of_identity[identity]})
    here = {m.document.key: m for m in before.local()}
    meshed_now = dict(before.meshed())
    for key in changed:
        here.pop(key, None)
    after = Members(
        tuple(everyone),
        before.index,
        before.ingress,
        before.shape,
        of_identity,
        speaking,
        [],
        [meshed_now],
        before._resolved,
    )
    here.update({m.document.key: m for m in after.named(changed) if m.local and m.attachment is not None})
    after._local.append(tuple(here[key] for key in sorted(here)))
    for identity in touched:
        one = next((m for m in of_identity[identity] if m.mesh), None)
        meshed_now.pop(identity, None)
        if one is not None:
            meshed_now[identity] = one
    return after


def _member(world: World, key: ObjectKey, before: Members, meshed: frozenset[str]) -> Member | None:
    """One workload, whose identity and ports others have too; None if it is gone or alone."""
    document = world.documents.get(key)
    if document is None:
        return None
    workload = document.value
    assert isinstance(workload, Workload)
    identity = world.allocations.identities.get(identity_text(document, workload))
    ports = tuple(sorted((p.name, p.container_port, str(p.protocol)) for p in workload.spec.ports))
    twin = next((m for m in before.by_identity.get(identity or 0, ()) if m.ports == ports), None)
    if twin is None:
        return None
    local = _is_local(workload, world)
    attachment = world.attachments.get((key.namespace, key.name)) if local else None
    addresses = tuple(parse_address(a) for a in workload.spec.addresses)
    return Member(
        document=document,
        identity=twin.identity,
        subject=twin.subject,
        labels=twin.labels,
        service_account=workload.spec.service_account_name,
        local=local,
        mesh=not local and workload.spec.node in meshed,
        addresses=addresses or (attachment.addresses if attachment else ()),
        ports=ports,
        attachment=attachment,
        netns=workload.spec.netns,
    )


def ingress_members(world: World) -> tuple[Member, ...]:
    """One for this node and each other node, this node's first."""
    if not has_edge(world):
        return ()
    meshed = meshed_nodes(world)
    others = sorted({d.key.name for d, _ in world.of_kind(Node)} - {world.node})
    return tuple(
        Member(
            document=ingress_document(node),
            identity=INGRESS,
            subject=INGRESS_SUBJECT,
            labels=reserved_labels(INGRESS),
            service_account=ACCOUNT,
            local=node == world.node,
            mesh=node != world.node and node in meshed,
            addresses=of_node(world, node),
            ports=(),
            attachment=None,
            netns=None,
        )
        for node in (world.node, *others)
    )
