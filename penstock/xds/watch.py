"""One resource type on one stream: what the client asked for, was sent, and acknowledged.

Kept true here:
- `sent` names all that the client may hold: each is removed before it is forgotten. After a NACK what it
  holds is unknown (Envoy applies some of a refused response), so the name stays, with version "".
- Bytes that were refused are not sent again under that name until the client acknowledged other bytes for
  it or the name was removed. The last good resource is kept, to answer a client that asks meanwhile.
- A name never stands twice in a response, nor in both its lists: names are sets, and additions and
  removals travel in separate responses.

A Watch decides nothing about order between types; `session` does.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from penstock.xds.snapshot import Resource, Snapshot, TypeUrl

LEGACY_WILDCARD = frozenset({TypeUrl.CDS, TypeUrl.LDS, TypeUrl.SRDS})
"""Types whose first request without names means all resources. For others it means none yet."""

BATCHED = frozenset({TypeUrl.CDS, TypeUrl.LDS})
"""Types with many resources in a response: Envoy warms clusters together. The others travel one by one, so
that a bad resource takes no good one with it."""


class SyncState(StrEnum):
    """How one resource stands with one client; the words are those of CSDS (envoy.service.status.v3)."""

    NOT_SENT = "not-sent"
    STALE = "stale"
    SYNCED = "synced"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Refusal:
    """A resource that a client refused, and the client's words."""

    type_url: str
    name: str
    version: str
    message: str


@dataclass(frozen=True, slots=True)
class ResourceStatus:
    """`version` is the wanted one ("": none should exist), `acked` the one in force at the client."""

    name: str
    version: str
    acked: str
    state: SyncState
    error: str = ""


@dataclass(frozen=True, slots=True)
class Parcel:
    """What one response says: resources, or the names of removed ones; both only where `Watch.complete`.

    `kept` are resources whose time to live begins anew.
    """

    resources: Mapping[str, Resource] = field(default_factory=dict)
    removed: frozenset[str] = frozenset()
    kept: tuple[Resource, ...] = ()


class Watch:
    """`complete`: each response carries all that the client is to hold, so only one may be on its way."""

    def __init__(self, type_url: str, *, complete: bool = False) -> None:
        self.type_url = type_url
        self.complete = complete
        self.groups: list[list[str]] = []
        """Of a complete type: parts of a refused response that are still to be tried."""
        self.last_nonce = ""
        self.named = False
        """The client has asked for something by name on this stream (state of the world)."""
        self.returning = False
        """The client has something from an earlier stream."""
        self.opened = False
        """The client asked for this type on this stream."""
        self.wildcard = False
        self.names: set[str] = set()
        self.greet = False
        """The client waits for a first answer, be it an empty one."""
        self.due: set[str] = set()
        """Names to be answered at once, whatever the client seems to have."""
        self.dirty: set[str] = set()
        """Names whose wanted version may differ from the one sent: the pending push."""
        self.outstanding: dict[str, Parcel] = {}
        """Nonce → response that the client has yet to acknowledge."""
        self.sent: dict[str, str] = {}
        self.acked: dict[str, str] = {}
        self.refused: dict[str, dict[str, Refusal]] = {}
        """Name → version → why not, since the client last acknowledged something of that name."""
        self._good: dict[str, Resource] = {}

    # What the client wants

    def wants(self, name: str) -> bool:
        return self.wildcard or name in self.names

    def open(self, subscribe: Iterable[str], held: Mapping[str, str]) -> None:
        """First request of this type on the stream; `held` (name → version) the client brought along."""
        self.opened = True
        names = set(subscribe)
        self.wildcard = "*" in names or (not names and self.type_url in LEGACY_WILDCARD)
        self.greet = self.wildcard
        self.names = names - {"*"}
        self.returning = bool(held)
        self.sent = {name: version for name, version in held.items() if self.wants(name)}
        self.acked = dict(self.sent)
        self.due = {name for name in self.due if self.wants(name)} | (self.names - held.keys())

    def change(self, subscribe: Iterable[str], unsubscribe: Iterable[str], snapshot: Snapshot | None) -> None:
        """A later request. A name in both lists was given up and is wanted anew, so it is answered."""
        added, gone = set(subscribe), set(unsubscribe)
        if "*" in gone:
            self.wildcard = self.greet = False
            gone.discard("*")
            gone |= (self.sent.keys() | self.dirty | self.due) - self.names
        self.names -= gone
        for name in gone:
            if self.wildcard:
                # Only we know whether the wildcard still covers it.
                self.due.add(name)
            else:
                self._forget(name)
        if "*" in added:
            added.discard("*")
            if not self.wildcard:
                self.wildcard = self.greet = True
                if snapshot is not None:
                    self.dirty.update(snapshot.of(self.type_url))
        self.names |= added
        self.due |= added

    def _forget(self, name: str) -> None:
        """The client dropped it: it holds nothing of that name any more."""
        for table in (self.sent, self.acked, self.refused, self._good):
            table.pop(name, None)
        self.due.discard(name)
        self.dirty.discard(name)

    # What the client must be told

    def compare_all(self, snapshot: Snapshot) -> None:
        """Everything may differ: the first snapshot, or the first request after it."""
        self.dirty |= self.names | self.sent.keys()
        if self.wildcard:
            self.dirty.update(snapshot.of(self.type_url))

    def mark(self, names: Iterable[str]) -> None:
        """These names changed in the wanted snapshot."""
        self.dirty.update(name for name in names if self.wants(name) or name in self.sent)

    def take_due(self, snapshot: Snapshot) -> tuple[list[Resource], frozenset[str]]:
        """Answers to the client's questions: resources, and names that do not exist."""
        resources: list[Resource] = []
        missing: set[str] = set()
        for name in sorted(self.due):
            found = snapshot.get(self.type_url, name)
            if found is None:
                self.refused.pop(name, None)
            elif self.is_refused(found):
                found = self._good.get(name)
                if found is None and name in self.acked:
                    continue  # it brought a good one along from an earlier stream; we do not have those bytes
            if found is None:
                missing.add(name)
            else:
                resources.append(found)
        self.dirty -= self.due
        self.due.clear()
        return resources, frozenset(missing)

    def take_additions(self, snapshot: Snapshot) -> list[Resource]:
        """Resources of the pending push that are new or changed; removals stay pending."""
        resources: list[Resource] = []
        removals: set[str] = set()
        for name in sorted(self.dirty):
            found = snapshot.get(self.type_url, name)
            if found is None:
                if name in self.sent:
                    removals.add(name)
            elif self.sent.get(name) != found.version and not self.is_refused(found):
                resources.append(found)
        self.dirty = removals
        return resources

    def take_removals(self, snapshot: Snapshot) -> frozenset[str]:
        """Names of the pending push that are gone; additions stay pending."""
        gone = {name for name in self.dirty if snapshot.get(self.type_url, name) is None}
        self.dirty -= gone
        for name in gone:
            self.refused.pop(name, None)
            self._good.pop(name, None)
        return frozenset(gone & self.sent.keys())

    def drop(self, names: Iterable[str]) -> None:
        """These are gone, and the protocol has no words to say so."""
        for name in names:
            self.sent.pop(name, None)
            self.acked.pop(name, None)

    def is_refused(self, item: Resource) -> bool:
        return item.version in self.refused.get(item.name, ())

    def parcels(self, resources: list[Resource]) -> list[Parcel]:
        """Cut resources into responses. A name that was refused before travels alone, not with good ones."""
        if self.type_url not in BATCHED and not self.complete:
            return [Parcel({item.name: item}) for item in resources]
        suspects = [item for item in resources if item.name in self.refused]
        others = {item.name: item for item in resources if item.name not in self.refused}
        return ([Parcel(others)] if others else []) + [Parcel({item.name: item}) for item in suspects]

    def state(self, parcel: Parcel) -> dict[str, Resource]:
        """All that the client is to hold after `parcel`: what it took before, and this."""
        held = {name: item for name, item in self._good.items() if name not in parcel.removed}
        return {**held, **parcel.resources}

    def alive(self, snapshot: Snapshot) -> tuple[Resource, ...]:
        """What the client has in force and would lose if nobody renewed it."""
        found = []
        for name, version in self.acked.items():
            item = snapshot.get(self.type_url, name)
            if item is None or item.version != version:
                item = self._good.get(name)
            if item is not None and item.ttl is not None and self.sent.get(name) == item.version:
                found.append(item)
        return tuple(found)

    def last_good(self, name: str) -> Resource | None:
        """What the client acknowledged last on this stream."""
        return self._good.get(name)

    # What the client said

    def record(self, nonce: str, parcel: Parcel) -> None:
        self.outstanding[nonce] = parcel
        self.last_nonce = nonce
        self.greet = False
        for name, item in parcel.resources.items():
            self.sent[name] = item.version
        for name in parcel.removed:
            self.sent.pop(name, None)

    def ack(self, parcel: Parcel, snapshot: Snapshot) -> None:
        for name, item in parcel.resources.items():
            if not self.wants(name):
                continue
            self.acked[name] = item.version
            self._good[name] = item
            wanted = snapshot.get(self.type_url, name)
            # The last good bytes, sent again while refused ones are wanted, do not clear the error.
            if wanted is None or not self.is_refused(wanted):
                self.refused.pop(name, None)
        for name in parcel.removed:
            self.acked.pop(name, None)
            self._good.pop(name, None)

    def nack(self, parcel: Parcel, message: str) -> list[list[str]]:
        """Keep the error of a single resource, or tell how to cut a larger response to find the bad one."""
        names = sorted(name for name in parcel.resources if self.wants(name))
        self.sent.update((name, "") for name in names if name in self.sent)
        if len(parcel.resources) > 1:
            return _cut(names, message)
        for name in names:
            version = parcel.resources[name].version
            self.refused.setdefault(name, {})[version] = Refusal(self.type_url, name, version, message)
        return []

    # How things stand

    @property
    def busy(self) -> bool:
        """Something is still to be said or to be acknowledged."""
        open_ = any(not parcel.kept for parcel in self.outstanding.values())
        return bool(open_ or self.groups or self.dirty or self.greet or (self.opened and self.due))

    def refusals(self, snapshot: Snapshot) -> list[Refusal]:
        """Resources that are wanted now and were refused as they are."""
        found: list[Refusal] = []
        for name, versions in self.refused.items():
            item = snapshot.get(self.type_url, name)
            if item is not None and item.version in versions:
                found.append(versions[item.version])
        return found

    def status(self, snapshot: Snapshot) -> tuple[ResourceStatus, ...]:
        """Every resource of the snapshot, and what the client still holds beyond it, by name."""
        wanted = snapshot.of(self.type_url)
        return tuple(
            self._status(name, wanted.get(name)) for name in sorted(wanted.keys() | self.acked.keys())
        )

    def _status(self, name: str, item: Resource | None) -> ResourceStatus:
        acked = self.acked.get(name, "")
        version = item.version if item is not None else ""
        error = ""
        if acked == version:
            state = SyncState.SYNCED
        elif item is not None and self.is_refused(item):
            state, error = SyncState.ERROR, self.refused[name][version].message
        elif name in self.sent or name in self.acked:
            state = SyncState.STALE
        else:
            state = SyncState.NOT_SENT
        return ResourceStatus(name, version, acked, state, error)


def _cut(names: list[str], message: str) -> list[list[str]]:
    """Two smaller groups: those that the client's words mention and the others, else halves.

    The words only make the search shorter. Each group is judged by its own answer.
    """
    mentioned = [name for name in names if name in message]
    if 0 < len(mentioned) < len(names):
        return [[name for name in names if name not in mentioned], mentioned]
    middle = (len(names) + 1) // 2
    return [group for group in (names[:middle], names[middle:]) if group]
