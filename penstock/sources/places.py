"""Where this node's workloads are: which namespaces are sought, and how each was found to hang on the node.

What is looked at is kept until an event says that it may be different: a node of a thousand workloads enters
one namespace when one comes.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from penstock.manifests.document import Document, ObjectKey
from penstock.manifests.kinds import Workload
from penstock.redirect.leads import Leads
from penstock.sources.netns import NamespaceEvents, Surroundings, Wanted, attachments, on_bridges
from penstock.world import Address

if TYPE_CHECKING:
    from penstock.sources.docker import DockerSource

# A namespace may be told of before its addresses are there; nobody outside it sees them come.
UNSETTLED_RETRY = (0.02, 2.0)
"""Seconds of the first pause, and of the longest."""
ENGINE_SETTLE = 0.02
"""Seconds for which events of links are gathered where an engine tells of its containers by itself."""


class Places:
    """`look` after each event. `blocking` runs a call on the thread that owns netlink."""

    def __init__(
        self,
        node: str,
        containers: DockerSource | None,
        *,
        node_addresses: Callable[[], tuple[Address, ...]],
        leads: Leads,
        blocking: Callable[..., Awaitable[Any]],
    ) -> None:
        self._node = node
        self._containers = containers
        self._node_addresses = node_addresses
        self._leads = leads
        self._blocking = blocking
        self._events = NamespaceEvents(ENGINE_SETTLE if containers else 0.0)
        self._sought: list[Wanted] = []
        self._stale = True
        self._pause = UNSETTLED_RETRY[0]
        self.surroundings = Surroundings({})
        self.addresses: tuple[Address, ...] = ()
        """The node's own."""

    def stale(self) -> None:
        """The next `look` is to ask the kernel."""
        self._stale = True

    async def changes(self) -> AsyncIterator[None]:
        """Each time that namespaces, links or addresses may be different."""
        async for _ in self._events.changes():
            self.expect()
            yield

    def expect(self) -> None:
        """Something comes or goes: look, and look again soon if it is not whole yet."""
        self._stale = True
        self._pause = UNSETTLED_RETRY[0]

    async def look(self, documents: Mapping[ObjectKey, Document]) -> bool:
        """Whether anything is different from the last time."""
        sought = self._wanted(documents)
        before = self.surroundings, self.addresses, self._sought
        if self._stale or sought != self._sought:
            self._stale = False
            self._sought = sought
            self._events.watch(w.netns for w in sought)
            self.surroundings = await self._blocking(attachments, sought, self.surroundings.found)
            self.addresses = await self._blocking(self._node_addresses)
            await self._blocking(self._leads.settle, on_bridges(self.surroundings))
        return before != (self.surroundings, self.addresses, sought)

    def retry(self) -> float | None:
        """Seconds after which to look again without an event: some namespace is there and not yet whole."""
        found = self.surroundings.found
        absent = [w for w in self._sought if Path(w.netns).exists() and not (w in found and found[w].settled)]
        if not absent or self._pause > UNSETTLED_RETRY[1]:
            return None
        pause, self._pause = self._pause, self._pause * 2
        return pause

    def close(self) -> None:
        self._events.close()

    def _wanted(self, documents: Mapping[ObjectKey, Document]) -> list[Wanted]:
        found = []
        for key, document in documents.items():
            value = document.value
            if isinstance(value, Workload):
                netns = self._netns(value)
                if netns:
                    found.append(Wanted((key.namespace, key.name), netns, value.spec.interface))
        return found

    def _netns(self, workload: Workload) -> str | None:
        spec = workload.spec
        if spec.node not in (None, self._node):
            return None
        if spec.container and self._containers is not None:
            pid = self._containers.pid(spec.container)
            return f"/proc/{pid}/ns/net" if pid else None
        return spec.netns
