"""One question: whether this client may ask it, and what the mesh itself answers. Pure.

Services have the names that Kubernetes gives them, as seen from the client's own namespace: ``web``,
``web.shop``, ``web.shop.svc`` and ``web.shop.svc.cluster.local``.

Source: Kubernetes DNS-Based Service Discovery 1.1.0; RFC 2782 (SRV).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_address

from penstock.dns.model import Client, DnsPlan, ServiceName
from penstock.dns.patterns import any_matches

DOMAIN = "cluster.local"
SERVICE_DOMAIN = f"svc.{DOMAIN}"
PROTOCOLS = {"tcp": "TCP", "udp": "UDP", "sctp": "SCTP"}


@dataclass(frozen=True, slots=True)
class Answered:
    """What a name of a Service stands for: addresses, or servers (port, target), or the name of an address.

    `exists` False is NXDOMAIN; nothing of the asked kind is an empty answer.
    """

    exists: bool = True
    addresses: tuple[str, ...] = ()
    servers: tuple[tuple[int, str], ...] = ()
    hosts: tuple[tuple[str, str], ...] = ()
    """Addresses of `servers` by name, for the additional section."""
    pointer: str = ""


class Resolver:
    """Answers by one DnsPlan. Names are canonical (penstock.dns.patterns)."""

    def __init__(self, plan: DnsPlan) -> None:
        self._plan = plan
        self._pointers: dict[str, str] | None = None

    def client(self, address: str) -> Client | None:
        return self._plan.clients.get(address)

    def client_like(self, client: Client) -> Client | None:
        """The same workload as it is by this plan, if it is there."""
        return next((c for c in self._plan.clients.values() if c.ifindex == client.ifindex), None)

    def own(self, server: str) -> bool:
        """Whether `server` is the node's own DNS."""
        return server in self._plan.addresses

    def allowed(self, client: Client, server: int, protocol: int, port: int, name: str) -> bool:
        """Whether the client may ask a server (by its identity) for `name`, or for what it is short for."""
        grants = self._plan.rules.get(client.subject)
        if grants is None:
            return True
        spellings = {name, self.full(client, name)}
        return any(
            (not grant.peers or server in grant.peers)
            and grant.protocol in (0, protocol)
            and grant.first <= port <= grant.last
            and (grant.names is None or any(any_matches(grant.names, each) for each in spellings))
            for grant in grants
        )

    def lists(self, client: Client, name: str) -> tuple[int, ...]:
        """The lists of names by which the client is allowed the addresses of `name`."""
        listed = self._plan.learns.get(client.subject, ())
        return tuple(number for number in listed if any_matches(self._plan.lists[number], name))

    def learns(self, client: Client) -> bool:
        return client.subject in self._plan.learns

    def full(self, client: Client, name: str) -> str:
        """The whole name of a Service that `name` is short for; else `name` itself."""
        labels = name.split(".")
        if len(labels) <= 2 and self._service(labels[0], labels[1] if len(labels) == 2 else client.namespace):
            namespace = labels[1] if len(labels) == 2 else client.namespace
            return f"{labels[0]}.{namespace}.{SERVICE_DOMAIN}"
        if name.endswith(".svc") and len(labels) == 3:
            return f"{name}.{DOMAIN}"
        return name

    def _service(self, name: str, namespace: str) -> ServiceName | None:
        return self._plan.services.get(f"{namespace}/{name}")

    def answer(self, client: Client, name: str, *, own: bool) -> Answered | None:
        """What the mesh says; None if the question is to be passed on. `own`: asked at the node's own DNS."""
        if name.endswith((".in-addr.arpa", ".ip6.arpa")):
            pointer = self._pointer(name)
            return Answered(pointer=pointer) if pointer else None
        whole = self.full(client, name)
        if whole != SERVICE_DOMAIN and not whole.endswith(f".{SERVICE_DOMAIN}"):
            if own and (whole == DOMAIN or whole.endswith(f".{DOMAIN}")):
                return Answered(exists=whole == DOMAIN)
            return None
        labels = whole.removesuffix(SERVICE_DOMAIN).rstrip(".").split(".")
        found = self._of_labels(labels)
        return found if found is not None else Answered(exists=labels == [""]) if own else None

    def _of_labels(self, labels: list[str]) -> Answered | None:
        if len(labels) < 2:
            return None
        *front, service_name, namespace = labels
        service = self._service(service_name, namespace)
        base = f"{service_name}.{namespace}.{SERVICE_DOMAIN}"
        if service is None:
            return None
        if not front:
            return Answered(addresses=service.addresses)
        if len(front) == 1 and front[0] in service.hosts:
            return Answered(addresses=service.hosts[front[0]])
        if len(front) == 2 and front[0].startswith("_") and front[1].startswith("_"):
            return self._servers(service, base, front[0][1:], PROTOCOLS.get(front[1][1:], ""))
        return None

    def _servers(self, service: ServiceName, base: str, port: str, protocol: str) -> Answered | None:
        number = next((p.port for p in service.ports if (p.name, p.protocol) == (port, protocol)), None)
        if number is None:
            return None
        if not service.hosts:
            return Answered(
                servers=((number, base),), hosts=tuple((base, address) for address in service.addresses)
            )
        return Answered(
            servers=tuple((number, f"{host}.{base}") for host in service.hosts),
            hosts=tuple((f"{host}.{base}", a) for host, found in service.hosts.items() for a in found),
        )

    def _pointer(self, name: str) -> str:
        if self._pointers is None:
            self._pointers = dict(self._named())
        return self._pointers.get(name, "")

    def _named(self) -> Iterator[tuple[str, str]]:
        for key, service in self._plan.services.items():
            namespace, _, name = key.partition("/")
            base = f"{name}.{namespace}.{SERVICE_DOMAIN}"
            hosts = service.hosts or {"": service.addresses}
            for host, addresses in hosts.items():
                for address in addresses:
                    yield ip_address(address).reverse_pointer, f"{host}.{base}".lstrip(".")
