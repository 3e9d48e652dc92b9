"""One xDS stream as a sans-IO state machine: requests and snapshots in, responses out.

Rules that a server gets wrong (Envoy's documentation, "xDS REST and gRPC protocol"), and how they are held:
- Nothing is answered before the first complete snapshot: an early empty answer would take from a
  reconnecting client what it has.
- ACK or NACK is told by `error_detail` alone. A nonce that is not outstanding acknowledges nothing.
- Questions are answered at once, from the newest snapshot (those about routes and listeners only when its
  clusters are on their way too). Changes go out as one push per type; what is published until the push
  is acknowledged merges into the next. (Per type, not per stream: Envoy withholds the ACK of CDS for up
  to 15 s while a cluster warms, and what it warms for may be in the very push that would wait.)
- A refused response of several resources is cut and sent again in parts until the bad resource is alone.
- A cluster that is sent takes its endpoints with it, unasked: Envoy would wait 15 s for them, and not ask.

Order within a stream (make before break), so that any publish is safe, also to a client that comes back
after the world has changed: changed listeners, scopes and routes wait until no CDS response is
unacknowledged; removals wait until all that may still use the removed is acknowledged (the chain
_REMOVALS). Secrets and endpoints wait for nothing, so that nothing can wait for itself. A stream of a single
type knows nothing of the others, and waits for none.

`Session` is the core; what differs between the variants of the protocol stands in the two faces: how a
request changes what the client watches, which types travel whole, and the bytes of a response.

    incremental          `DeltaSession` in delta.py
    state of the world   `StateSession` in state.py
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from typing import Any, ClassVar, TypeAlias

from penstock.xds.errors import ProtocolError
from penstock.xds.said import Acked, Event, Nacked, Response
from penstock.xds.snapshot import Resource, Snapshot, TypeUrl
from penstock.xds.watch import Parcel, Refusal, ResourceStatus, Watch

# protobuf generates its classes at run time; this name says which message is meant.
Request: TypeAlias = Any  # DeltaDiscoveryRequest or DiscoveryRequest

TTL_FEATURE = "xds.config.supports-resource-ttl"
"""What a client says in node.client_features that drops resources by their time to live."""

_AFTER_CLUSTERS = frozenset({TypeUrl.LDS, TypeUrl.SRDS, TypeUrl.RDS})
_REMOVALS = (TypeUrl.LDS, TypeUrl.SRDS, TypeUrl.RDS, TypeUrl.CDS, TypeUrl.EDS)
"""A removal waits until the types before its own are idle."""


_KNOWN = frozenset(TypeUrl)


class Session:
    """The core; take one of the faces. `only` is the one type of a stream that is not aggregated."""

    complete: ClassVar[frozenset[TypeUrl]] = frozenset()
    """Types whose responses carry all that the client is to hold."""

    def __init__(self, only: TypeUrl | None = None) -> None:
        self.only = only
        self.node: Any = None
        """The client's node, an envoy.config.core.v3.Node; it comes with the first request only."""
        self.nacks = 0
        self.most_names = 0
        """Names that the client may watch, and types; 0 is any number."""
        self._snapshot: Snapshot | None = None
        self._watches: dict[str, Watch] = {}
        self._nonce = 0
        self._events: list[Event] = []

    @property
    def node_id(self) -> str:
        return self.node.id if self.node is not None else ""

    @property
    def understands_ttl(self) -> bool:
        return self.node is not None and TTL_FEATURE in self.node.client_features

    def receive(self, request: Request) -> list[Response]:
        """Take one request. Raises ProtocolError if its type is not the stream's, if it asks for more than it
        may, or for what is not supported; the stream must then end."""
        kind = self._kind(request.type_url)
        self._look_at(request, kind)
        watch = self._watch(kind)
        if self.node is None and request.HasField("node"):
            self.node = request.node
        responses = self._settle(watch, request)
        self._subscribe(watch, request)
        return responses + self._flush()

    def encode(self, response: Response) -> bytes:
        """The bytes of a response in this variant of the protocol."""
        raise NotImplementedError

    def _asked(self, request: Request, names: Set[str]) -> int:
        """How many names of its type are watched after a request, with `names` watched now. Raises
        ProtocolError if it asks in another way than by names."""
        raise NotImplementedError

    def _look_at(self, request: Request, kind: str) -> None:
        watch = self._watches.get(kind)
        asked = self._asked(request, watch.names if watch is not None else frozenset())
        others = sum(1 + len(other.names) for other in self._watches.values() if other is not watch)
        if self.most_names and others + 1 + asked > self.most_names:
            raise ProtocolError(f"a stream may ask for {self.most_names} names and types, not for more")

    def _subscribe(self, watch: Watch, request: Request) -> None:
        """Take what a request says about what the client watches."""
        raise NotImplementedError

    def _open(self, watch: Watch, names: Iterable[str], held: Mapping[str, str]) -> None:
        watch.open(names, held)
        if self._snapshot is not None:
            watch.compare_all(self._snapshot)

    def heartbeat(self) -> list[Response]:
        """Renew what the client would drop otherwise. A client that still owes an answer is not pressed."""
        if not self.understands_ttl or self._snapshot is None:
            return []
        responses: list[Response] = []
        for watch in self._ordered():
            kept = () if watch.outstanding else watch.alive(self._snapshot)
            if kept:
                responses += self._send(watch, Parcel(kept=kept))
        return responses

    def publish(self, snapshot: Snapshot) -> list[Response]:
        """Make `snapshot` the wanted state."""
        before, self._snapshot = self._snapshot, snapshot
        for watch in self._watches.values():
            if not watch.opened:
                continue
            if before is None:
                watch.compare_all(snapshot)
            else:
                watch.mark(snapshot.changes(before, watch.type_url))
        return self._flush()

    def drain_events(self) -> list[Event]:
        """What the client told since the last call."""
        events, self._events = self._events, []
        return events

    def settled(self, type_url: str) -> bool:
        """True when the client has acknowledged or refused all that it should have of this type.

        Types that a client asks for by name are settled while it asks for none. CDS and LDS it always asks
        for, so with something to give they are not settled before it has.
        """
        if self._snapshot is None:
            return False
        if self.only not in (None, type_url):
            return True
        watch = self._watches.get(type_url)
        if watch is None or not watch.opened:
            return type_url not in (TypeUrl.CDS, TypeUrl.LDS) or not self._snapshot.of(type_url)
        return not watch.busy

    def refusals(self) -> list[Refusal]:
        """Resources of the wanted snapshot that the client refused and that are therefore not in force."""
        snapshot = self._snapshot or Snapshot()
        return [refusal for watch in self._ordered() for refusal in watch.refusals(snapshot)]

    def status(self) -> Mapping[str, tuple[ResourceStatus, ...]]:
        """Per type that the client asked for: each resource with wanted and acknowledged version."""
        snapshot = self._snapshot or Snapshot()
        return {watch.type_url: watch.status(snapshot) for watch in self._ordered() if watch.opened}

    @property
    def snapshot(self) -> Snapshot:
        """What is wanted; nothing before the first publish."""
        return self._snapshot or Snapshot()

    def watched(self) -> list[Watch]:
        """What the client asked for, type by type."""
        return [watch for watch in self._ordered() if watch.opened]

    # Inside

    def _kind(self, type_url: str) -> str:
        if self.only is not None and type_url in ("", self.only):
            return self.only
        if self.only is not None:
            raise ProtocolError(f"{type_url} was asked for on a stream of {self.only}")
        if not type_url:
            raise ProtocolError("the request on an aggregated stream has no type_url")
        return type_url

    def _watch(self, type_url: str) -> Watch:
        watch = self._watches.get(type_url)
        if watch is None:
            complete = type_url in self.complete
            watch = self._watches[type_url] = Watch(type_url, complete=complete)
        return watch

    def _ordered(self) -> list[Watch]:
        """Our types in the order of additions, then any other type that a client asked for."""
        known = [self._watches[kind] for kind in TypeUrl if kind in self._watches]
        return known + [watch for kind, watch in self._watches.items() if watch not in known]

    def _settle(self, watch: Watch, request: Request) -> list[Response]:
        """Take the ACK or NACK in a request. A NACK of several resources is answered with parts of them."""
        parcel = watch.outstanding.pop(request.response_nonce, None)
        if parcel is None or self._snapshot is None:
            return []
        names = tuple(parcel.resources)
        if not request.HasField("error_detail"):
            watch.ack(parcel, self._snapshot)
            self._events.append(Acked(watch.type_url, names, tuple(sorted(parcel.removed))))
            return []
        self.nacks += 1
        message = request.error_detail.message
        self._events.append(Nacked(watch.type_url, names or tuple(sorted(parcel.removed)), message))
        groups = watch.nack(parcel, message)
        if watch.complete:
            watch.groups += groups
            return []
        return [response for group in groups for response in self._send_part(watch, group)]

    def _send_part(self, watch: Watch, group: list[str]) -> list[Response]:
        """What these names stand for now, as far as it was not refused alone."""
        found = (self.snapshot.get(watch.type_url, name) for name in group)
        part = {item.name: item for item in found if item is not None and not watch.is_refused(item)}
        return self._send(watch, Parcel(part)) if part else []

    def _flush(self) -> list[Response]:
        """Say all that may be said now."""
        snapshot = self._snapshot
        if snapshot is None:
            return []
        responses: list[Response] = []
        secrets = self._watches.get(TypeUrl.SDS)
        if secrets is not None and secrets.dirty:
            responses += self._remove(secrets, secrets.take_removals(snapshot))
        for kind in (*TypeUrl, *(kind for kind in tuple(self._watches) if kind not in _KNOWN)):
            watch = self._watches.get(kind)
            if watch is not None and watch.opened:
                responses += self._say(watch, snapshot)
        for position, kind in enumerate(_REMOVALS):
            watch = self._watches.get(kind)
            if watch is None or not watch.dirty or watch.outstanding or self._must_wait(watch):
                continue
            if not any(self._in_use(earlier, snapshot) for earlier in _REMOVALS[:position]):
                responses += self._remove(watch, watch.take_removals(snapshot))
        return responses

    def _say(self, watch: Watch, snapshot: Snapshot) -> list[Response]:
        """Parts of what was refused, answers to questions, and the push if none is outstanding."""
        responses: list[Response] = []
        while watch.groups and not watch.outstanding:
            responses += self._send_part(watch, watch.groups.pop(0))
        resources: list[Resource] = []
        missing: frozenset[str] = frozenset()
        held_up = watch.complete and bool(watch.outstanding)
        if watch.due and not held_up and not self._clusters_lack(watch, snapshot):
            resources, missing = watch.take_due(snapshot)
            if not watch.complete:
                responses += self._add(watch, resources) + self._remove(watch, missing)
                resources, missing = [], frozenset()
        greet = False
        if (watch.dirty or watch.greet) and not watch.outstanding and not self._must_wait(watch):
            greet = watch.greet
            resources = resources + watch.take_additions(snapshot)
        responses += self._add(watch, resources, missing)
        if watch.type_url not in _KNOWN and not watch.outstanding:
            responses += self._remove(watch, watch.take_removals(snapshot))
        if greet and watch.greet:
            responses += self._send(watch, Parcel())
        return responses

    def _must_wait(self, watch: Watch) -> bool:
        if watch.type_url not in _AFTER_CLUSTERS:
            return False
        clusters = self._watches.get(TypeUrl.CDS)
        return clusters is not None and bool(clusters.outstanding)

    def _clusters_lack(self, watch: Watch, snapshot: Snapshot) -> bool:
        """Whether an answer from the newest snapshot could name clusters that still wait to be sent."""
        if not self._must_wait(watch):
            return False
        wanted = snapshot.of(TypeUrl.CDS)
        return any(name in wanted for name in self._watch(TypeUrl.CDS).dirty)

    def _in_use(self, type_url: TypeUrl, snapshot: Snapshot) -> bool:
        """Whether the client may still use, through this type, what is about to be removed.

        A client that comes back asks for LDS some moments after CDS. Until it has acknowledged an answer to
        that (we always give one), we do not know its listeners and routes; a new one has none.
        """
        if self.only is not None:
            return False
        watch = self._watches.get(type_url)
        if watch is None or not watch.opened:
            returning = any(other.returning for other in self._watches.values())
            return returning and type_url == TypeUrl.LDS and bool(snapshot.of(type_url))
        return watch.busy

    def _add(
        self, watch: Watch, resources: list[Resource], missing: frozenset[str] = frozenset()
    ) -> list[Response]:
        parcels = watch.parcels(resources)
        if not watch.complete:
            return [response for parcel in parcels for response in self._send(watch, parcel)]
        watch.groups += [list(parcel.resources) for parcel in parcels[1:]]
        if not parcels and not missing:
            return []
        first = parcels[0].resources if parcels else {}
        return self._send(watch, Parcel(first, missing))

    def _owe_endpoints(self, clusters: Iterable[Resource]) -> None:
        endpoints = self._watch(TypeUrl.EDS)
        for cluster in clusters:
            name = cluster.endpoints
            # A client that has opened EDS without this name will ask for it; until it opens it, who knows.
            if name and (not endpoints.opened or endpoints.wants(name)):
                endpoints.due.add(name)

    def _remove(self, watch: Watch, names: frozenset[str]) -> list[Response]:
        return self._send(watch, Parcel(removed=names)) if names else []

    def _send(self, watch: Watch, parcel: Parcel) -> list[Response]:
        self._nonce += 1
        nonce = str(self._nonce)
        watch.record(nonce, parcel)
        if watch.type_url == TypeUrl.CDS:
            self._owe_endpoints(parcel.resources.values())
        return [self._response(watch, nonce, parcel)]

    def _response(self, watch: Watch, nonce: str, parcel: Parcel) -> Response:
        return Response(
            watch.type_url,
            nonce,
            tuple(parcel.resources.values()),
            tuple(sorted(parcel.removed)),
            parcel.kept,
        )
