"""What policies about traffic do with a request before any backend is chosen, and which policy says so.

A limit depends on who asked before, a service that is asked on what it says: of those only is told that they
are there. A fault for all requests, and a token that is missing, end the way.
"""

from __future__ import annotations

from collections.abc import Iterator

from penstock.explain.model import Outcome, Request
from penstock.facts import Facts
from penstock.manifests.document import ObjectKey
from penstock.routing.http_policies import Target
from penstock.routing.model import Route, ServiceTable
from penstock.routing.traffic import Traffic
from penstock.routing.treatment import NO_TREATMENT, Fault, Jwt, Treatment

Said = tuple[str, Outcome | None]
"""What is told of one part, and how the way ends with it."""

_FIELDS = {"limit": "rateLimit", "auth": "extAuth"}
"""Fields of HTTPPolicy that the parts of a treatment are not called after."""


def treated(
    facts: Facts,
    about: Treatment | None,
    targets: tuple[Target, ...],
    route: Route,
    request: Request | None,
) -> Iterator[Said]:
    """In the order in which the proxy does it; the first that ends the way is the last. `about` is said
    of all that the route stands in, and `targets` are what policies may mean by that."""
    does = (route.actions.treatment or NO_TREATMENT).over(about)
    targets = (*_of_route(route), *targets)

    def by(part: str) -> str:
        owner = facts.services.http.owner(part, *targets)
        if owner is None:
            return f"by {route.name}"
        origin = facts.world.documents[owner].origin("spec", _FIELDS.get(part, part))
        return f"by {owner} ({origin})"

    if does.fault is not None:
        yield _fault(does.fault, by("fault"))
    if does.limit is not None:
        who = {"Target": "all clients together", "Identity": "each identity", "Address": "each address"}
        limit = f"{does.limit.requests} requests in {does.limit.interval} ms for {who[does.limit.per]}"
        yield f"beyond {limit} it is answered with 429, {by('limit')}", None
    if does.jwt is not None:
        yield _jwt(does.jwt, request, by("jwt"))
    if does.auth is not None:
        if does.auth.cluster is None:
            text = f"the service to ask is not there: answered with 500, {by('auth')}"
            yield text, Outcome(False, "NOT_AUTHORIZED", code=500)
        else:
            yield f"{does.auth.authority} is asked whether it may pass, {by('auth')}", None


def _of_route(route: Route) -> tuple[Target, ...]:
    """The rule, then the route. Names of routes say what they are of."""
    parts = route.name.split("/")
    if len(parts) != 4 or ":" in parts[1]:
        return ()
    key = ObjectKey("GRPCRoute" if route.grpc else "HTTPRoute", parts[0], parts[1])
    return (key, parts[2]), (key, None)


def of_service(table: ServiceTable) -> tuple[Target, ...]:
    """The port, then the Service. Names of tables say what they are of."""
    namespace, service = table.name.split("/")[:2]
    name, _, port = service.partition(":")
    service_key = ObjectKey("Service", namespace, name)
    return (service_key, int(port)), (service_key, None)


def _fault(fault: Fault, by: str) -> Said:
    parts = []
    if fault.delay:
        parts.append(f"{fault.delay_percent} % wait {fault.delay} ms")
    status = fault.http_status if fault.http_status is not None else fault.grpc_status
    if status is not None:
        parts.append(f"{fault.abort_percent} % are answered with {status}")
    ends = status is not None and fault.abort_percent == 100
    code = fault.http_status if fault.http_status is not None else 200
    return f"on purpose {' and '.join(parts)}, {by}", Outcome(False, "FAULT", code=code) if ends else None


def _jwt(jwt: Jwt, request: Request | None, by: str) -> Said:
    if not jwt.providers:
        text = f"there are no keys to check its token against: answered with 500, {by}"
        return text, Outcome(False, "NOT_AUTHENTICATED", code=500)
    issuers = " or ".join(each.issuer for each in jwt.providers)
    headers = {(each.header or "authorization").lower() for each in jwt.providers}
    if jwt.optional or request is None or headers & set(request.headers):
        return f"a token of {issuers} is checked, {by}", None
    text = f"it has no token of {issuers}: answered with 401, {by}"
    return text, Outcome(False, "NOT_AUTHENTICATED", code=401)


def balanced(facts: Facts, cluster: str) -> str:
    """The BackendPolicy about the port behind a cluster, which is called after it; '' if there is none."""
    namespace, _, rest = cluster.partition("/")
    name, _, port = rest.partition("/")[0].partition(":")
    served = facts.services.find(namespace, name, int(port), None) if port.isdigit() else []
    owner = facts.services.policies.owner(served[0]) if served else None
    if owner is None:
        return ""
    traffic = facts.services.policies.of(served[0])
    assert traffic is not None
    words: list[str] = [traffic.balancer]
    words += [f"connections wait {traffic.connect_timeout} ms"] if traffic.connect_timeout else []
    words += ["circuit breaker"] if traffic.breaker != Traffic().breaker else []
    words += ["outlier detection"] if traffic.outliers is not None else []
    words += [f"health checks by {traffic.probe.kind}"] if traffic.probe is not None else []
    words += [f"failover by {traffic.failover.lower()}"] if traffic.failover is not None else []
    origin = facts.world.documents[owner].origin("spec")
    return f"{', '.join(words)}, by {owner} ({origin})"
