"""Containers as workloads, Compose services as Services: what the Docker Engine says, in manifests. Pure.

What is made is what a user could have written: it goes through the same checks, is shown by `get`, and gives
way to a manifest of the same name. Labels that mean something to us are below ``penstock.dev/``:

    mesh              of a network: "true" makes its containers workloads; of a container: that one; or not
    namespace         of a network or container; default: the Compose project, else "default"
    service-account   of a container; default: the Compose service, else "default"
    ports             of a container: ``[name=]port[:container port][/protocol]``, separated by commas;
                      default: the ports that it exposes or publishes

Source: Docker Engine API v1.41 (GET /containers/{id}/json, GET /networks), Compose specification (labels).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from penstock.manifests import syntax
from penstock.manifests.problem import Problem

PREFIX = "penstock.dev/"
MESH, NAMESPACE = PREFIX + "mesh", PREFIX + "namespace"
SERVICE_ACCOUNT, PORTS = PREFIX + "service-account", PREFIX + "ports"
PROJECT, SERVICE, ONE_OFF = (f"com.docker.compose.{word}" for word in ("project", "service", "oneoff"))
_NOT_IDENTITY = (PREFIX, "com.docker.", "desktop.docker.", "org.opencontainers.", "org.label-schema.")
"""Labels that tell of the image or of Compose's own bookkeeping: they differ between equal containers."""
DRIVERS = ("bridge", "null")
"""Drivers of networks whose containers hang on this node by a veth, or that hold nothing."""
_PORT = re.compile(r"(?:([a-z0-9-]+)=)?(\d+)(?::(\d+))?(?:/(tcp|udp))?")
STOP_TIMEOUT = 10.0
"""Seconds from the stop signal to the end, where the container says nothing else."""


@dataclass(frozen=True, slots=True)
class Network:
    """A network of the engine. `mesh` is None where it says nothing."""

    id: str
    name: str
    driver: str = "bridge"
    mesh: bool | None = None
    namespace: str = ""


@dataclass(frozen=True, slots=True)
class Container:
    """A container of the engine as it is now.

    `pid` is that of its first process in the engine's own view, 0 if none runs. `shares` is the container
    whose network namespace it is in, `ports` what it exposes and publishes: (number, "tcp" or "udp").
    """

    id: str
    name: str
    created: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    pid: int = 0
    paused: bool = False
    health: str = ""
    """"" without a health check, else "starting", "healthy" or "unhealthy"."""
    shares: str = ""
    on_host: bool = False
    networks: frozenset[str] = frozenset()
    macs: frozenset[str] = frozenset()
    ports: frozenset[tuple[int, str]] = frozenset()
    started: str = ""
    """RFC 3339; "" if it never was."""
    own_hosts: bool = False
    """Its /etc/hosts is a mount of the user's."""
    stop_signal: str = "SIGTERM"
    stop_timeout: float = STOP_TIMEOUT

    @property
    def service(self) -> str:
        """The Compose service, also of a one-off (`docker compose run`)."""
        return self.labels.get(SERVICE, "")

    @property
    def one_off(self) -> bool:
        return self.labels.get(ONE_OFF, "").lower() == "true"


@dataclass(frozen=True, slots=True)
class Made:
    """A manifest as data, and what it was made of, for whoever reads a message about it."""

    source: str
    value: dict[str, Any]
    created: str = ""


def _truth(text: str | None) -> bool | None:
    return None if text is None else text.strip().lower() == "true"


def read_network(data: Mapping[str, Any]) -> Network:
    """One entry of GET /networks."""
    labels = data.get("Labels") or {}
    return Network(
        id=data["Id"],
        name=data["Name"],
        driver=data.get("Driver") or "",
        mesh=_truth(labels.get(MESH)),
        namespace=labels.get(NAMESPACE, ""),
    )


def read_container(data: Mapping[str, Any]) -> Container:
    """The answer of GET /containers/{id}/json."""
    state, config, host = data["State"], data["Config"], data["HostConfig"]
    mode = host.get("NetworkMode") or ""
    networks = (data.get("NetworkSettings") or {}).get("Networks") or {}
    exposed = [*(config.get("ExposedPorts") or {}), *(host.get("PortBindings") or {})]
    ports = set()
    for text in exposed:
        number, _, protocol = text.partition("/")
        if number.isdigit() and protocol in ("tcp", "udp", ""):
            ports.add((int(number), protocol or "tcp"))
    running = state.get("Running") and not state.get("Restarting")
    return Container(
        id=data["Id"],
        name=data["Name"].lstrip("/"),
        created=data.get("Created") or "",
        labels=dict(config.get("Labels") or {}),
        pid=int(state.get("Pid") or 0) if running else 0,
        paused=bool(state.get("Paused")),
        health=_health((state.get("Health") or {}).get("Status") or ""),
        shares=mode.removeprefix("container:") if mode.startswith("container:") else "",
        on_host=mode == "host",
        networks=frozenset(n["NetworkID"] for n in networks.values() if n.get("NetworkID")),
        macs=frozenset(n["MacAddress"] for n in networks.values() if n.get("MacAddress")),
        ports=frozenset(ports),
        started=(state.get("StartedAt") or "") if running else "",
        own_hosts=any(m.get("Destination") == "/etc/hosts" for m in data.get("Mounts") or ()),
        stop_signal=config.get("StopSignal") or "SIGTERM",
        stop_timeout=float(config.get("StopTimeout") or STOP_TIMEOUT),
    )


def _health(text: str) -> str:
    return "" if text == "none" else text


def meshed(container: Container, networks: Mapping[str, Network]) -> bool:
    """Whether a container is to be a workload: its own label decides, then those of its networks."""
    if container.on_host or container.shares or not container.networks:
        return False
    own = _truth(container.labels.get(MESH))
    if own is not None:
        return own
    return any(networks[n].mesh for n in container.networks if n in networks)


def _not_served(container: Container, networks: Mapping[str, Network]) -> list[str]:
    """The networks of a container that no workload can be on."""
    mine = (networks[n] for n in sorted(container.networks) if n in networks)
    return [f'"{n.name}" (driver {n.driver})' for n in mine if n.driver not in DRIVERS]


def refused(containers: Iterable[Container], networks: Mapping[str, Network]) -> list[Problem]:
    """What cannot be a workload although it is to be one. It gets no rights, and nothing guards it."""
    return [
        Problem(
            f"docker:{container.name}",
            1,
            f"network {', '.join(names)} is not supported",
            "Workload",
            _namespace(container, networks),
            _name(container),
            hint="connect it to networks of the driver bridge only",
            code="unserved",
        )
        for container in sorted(containers, key=lambda c: (c.created, c.id))
        if container.pid and meshed(container, networks) and (names := _not_served(container, networks))
    ]


def objects(
    containers: Iterable[Container],
    networks: Mapping[str, Network],
    leaving: frozenset[str] = frozenset(),
) -> tuple[Made, ...]:
    """A Workload for each container of the mesh that runs, and a Service for each Compose service of it.

    A container in the network namespace of another (``network_mode: service:…``) is one workload with it: its
    ports are the other's too.

    `leaving` are the ids of containers that were told to stop: no Service leads to them any more. A Service
    stays as long as any container of it exists, running or not.
    """
    made: list[Made] = []
    services: dict[tuple[str, str], list[Container]] = {}
    taken: set[tuple[str, str]] = set()
    everyone = sorted(containers, key=lambda c: (c.created, c.id))
    sharing: dict[str, list[Container]] = {}
    for container in everyone:
        if container.shares:
            sharing.setdefault(container.shares, []).append(container)
    for container in everyone:
        if not meshed(container, networks):
            continue
        namespace = _namespace(container, networks)
        if container.service and not container.one_off:
            services.setdefault((namespace, container.service), []).append(container)
        if not container.pid or _not_served(container, networks):
            continue
        name = _name(container)
        if (namespace, name) in taken:
            name = f"{name[:50].rstrip('-')}-{container.id[:12]}"
        taken.add((namespace, name))
        ports = [p for c in (container, *sharing.get(container.id, ())) for p in _ports(c)]
        made.append(_workload(container, namespace, name, ports, ready=container.id not in leaving))
    made += [service for at, group in sorted(services.items()) for service in _service(*at, group)]
    return tuple(made)


def _word(text: str, longest: int = 63) -> str:
    """The nearest DNS label."""
    return re.sub(r"[^a-z0-9-]+", "-", text.lower())[:longest].strip("-")


def _namespace(container: Container, networks: Mapping[str, Network]) -> str:
    own = container.labels.get(NAMESPACE)
    if own is not None:
        return own
    mesh = [networks[n] for n in container.networks if n in networks]
    said = sorted(n.namespace for n in mesh if n.namespace)
    return said[0] if said else _word(container.labels.get(PROJECT, "")) or "default"


def _name(container: Container) -> str:
    """The container's name without its project's: `shop_web_1` and `shop-web-1` are `web-1` in `shop`."""
    plain = container.name
    project = container.labels.get(PROJECT, "")
    if project and re.match(rf"{re.escape(project)}[-_].", plain):
        plain = plain[len(project) + 1 :]
    return _word(plain) or f"container-{container.id[:12]}"


def identity_labels(container: Container) -> dict[str, str]:
    """What policies select it by: its own labels, Compose's project and service, and `app` if it has none.

    A label that is none for the API (a proxy's rule, a sentence) cannot be selected by and is left out.
    """
    found = {
        key: value
        for key, value in container.labels.items()
        if not key.startswith(_NOT_IDENTITY) and not (syntax.label_key(key) or syntax.label_value(value))
    }
    for key in (PROJECT, SERVICE):
        if container.labels.get(key):
            found[key] = container.labels[key]
    if container.service:
        found.setdefault("app", container.service)
    return found


@dataclass(frozen=True, slots=True, order=True)
class _Port:
    number: int
    protocol: str
    target: int
    name: str


def _ports(container: Container) -> list[_Port]:
    label = container.labels.get(PORTS)
    if label is None:
        return sorted(_Port(n, p.upper(), n, f"{p}-{n}") for n, p in container.ports)
    found = []
    for item in filter(None, (part.strip() for part in label.split(","))):
        match = _PORT.fullmatch(item)
        # What cannot be read goes on as it is, so that the check of the manifest refuses it by name.
        name, number, target, protocol = match.groups() if match else (item, "0", None, None)
        kind = protocol or "tcp"
        found.append(_Port(int(number), kind.upper(), int(target or number), name or f"{kind}-{number}"))
    return found


def _workload(container: Container, namespace: str, name: str, ports: list[_Port], *, ready: bool) -> Made:
    account = container.labels.get(SERVICE_ACCOUNT) or _word(container.service) or "default"
    ready = ready and not (container.paused or container.one_off) and container.health in ("", "healthy")
    targets = {(p.target, p.protocol): p for p in reversed(ports)}
    spec: dict[str, Any] = {
        "serviceAccountName": account,
        "container": container.name,
        "ports": [
            {"name": p.name, "containerPort": p.target, "protocol": p.protocol}
            for p in sorted(targets.values())
        ],
    }
    if not ready:
        spec["ready"] = False
    value = {
        "apiVersion": "penstock.dev/v1alpha1",
        "kind": "Workload",
        "metadata": {"name": name, "namespace": namespace, "labels": identity_labels(container)},
        "spec": spec,
    }
    return Made(f"docker:{container.name}", value, container.created)


def _service(namespace: str, service: str, group: list[Container]) -> Iterable[Made]:
    """The Service of a Compose service, if any of its containers says a port."""
    ports = {(p.number, p.protocol): p for c in reversed(group) for p in reversed(_ports(c))}
    if not ports:
        return
    selector = {SERVICE: service}
    if group[0].labels.get(PROJECT):
        selector[PROJECT] = group[0].labels[PROJECT]
    value = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": _word(service), "namespace": namespace},
        "spec": {
            "selector": selector,
            "ports": [
                {"name": p.name, "port": p.number, "targetPort": p.target, "protocol": p.protocol}
                for p in sorted(ports.values())
            ],
        },
    }
    yield Made(f"docker:{group[0].name}", value, group[0].created)
