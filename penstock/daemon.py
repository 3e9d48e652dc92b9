"""The daemon of one node: sources → World → compile → Plan → appliers, in one loop.

Whatever happens (a file, a namespace, Envoy, a certificate's age) only sets the loop going; the loop
reads the facts as they are, compiles, and applies the difference. So nothing depends on the order of
events, and a daemon that starts anew ends in the same state. SIGTERM ends it and leaves the datapath and
Envoy up; `teardown` removes all.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prometheus_client.metrics_core import Metric

from penstock import rundir, state
from penstock.apply import Applied
from penstock.control import ControlServer, socket_path
from penstock.dns.process import NoDnsError
from penstock.dns.shown import with_rules
from penstock.envoy.proxyless import Proxyless
from penstock.errors import PenstockError
from penstock.facts import Facts
from penstock.hostnames import HostsFiles, blocks
from penstock.inspect import CALLS, Inspector
from penstock.manifests.document import Document, ObjectKey
from penstock.manifests.kinds import Workload
from penstock.manifests.problem import Problem
from penstock.manifests.store import Store
from penstock.metrics import served
from penstock.node import Node, Options, open_node
from penstock.observe.als import access_log_service
from penstock.observe.flows import Flows
from penstock.observe.metrics import Metrics, of_certificates, of_status
from penstock.plan import Plan
from penstock.planner import Planner
from penstock.redirect.layout import decode_event
from penstock.redirect.leads import Leads
from penstock.report import Report, directory
from penstock.sources.combine import combined
from penstock.sources.files import FileSource
from penstock.sources.netns import NamespaceEvents, Surroundings, Wanted, attachments, on_bridges
from penstock.world import Address, World
from penstock.xds.snapshot import Resource, Snapshot, resource

if TYPE_CHECKING:
    from penstock.sources.docker import DockerSource

log = logging.getLogger(__name__)

# A namespace may be told of before its addresses are there; nobody outside it sees them come.
UNSETTLED_RETRY = (0.02, 2.0)


def _docker_source(socket: str) -> DockerSource:
    # Not before it is needed: its HTTP client takes a seventh of the time in which a daemon starts.
    from penstock.sources.docker import DockerSource

    return DockerSource(socket)


class Daemon:
    """One daemon: `open` it, then `run` it until SIGTERM or SIGINT."""

    def __init__(
        self, options: Options, node: Node, files: FileSource, flows: Flows, thread: ThreadPoolExecutor
    ) -> None:
        self.options = options
        self._node = node
        self._files = files
        self._flows = flows
        self._thread = thread
        self._namespaces = NamespaceEvents()
        self._report = Report(options, node, flows)
        self.metrics = Metrics()
        self.metrics.add(self._of_status)
        self._inspector = Inspector(node.tables, lambda: node.server.connected > 0)
        self._store = Store()
        self._planner = Planner()
        self._proxyless: Proxyless[Resource] = Proxyless(resource)
        self._docker = _docker_source(options.docker) if options.docker else None
        self._leads = Leads(rundir.leads_record(options.run_dir), options.settings.service_ranges)
        self._hosts_files = HostsFiles(rundir.hosts_record(options.run_dir))
        self._from_files: Mapping[ObjectKey, Document] = {}
        self._problems: tuple[Problem, ...] = ()
        self._world = World(options.node, {}, allocations=node.allocations, settings=options.settings)
        self._surroundings = Surroundings({})
        self._sought: list[Wanted] = []
        self._dirty = asyncio.Event()
        self._look_at_namespaces = True
        self._only_looking = False
        self._frozen = -64
        """How many objects there were when memory was last put aside."""
        self._revision = 0
        self._applied_revision = -1
        self._applied = asyncio.Condition()
        self._unsettled_pause = UNSETTLED_RETRY[0]
        self._timer: asyncio.TimerHandle | None = None
        self._waiter: asyncio.Task[None] | None = None

    @classmethod
    async def open(cls, options: Options) -> Daemon:
        """Raises PenstockError if the folder is not there or the node cannot carry a daemon."""
        files = FileSource(str(options.config))
        thread = ThreadPoolExecutor(1, thread_name_prefix="blocking")
        flows = Flows()

        async def blocking(function: Any, *arguments: Any) -> Any:
            return await asyncio.get_running_loop().run_in_executor(thread, function, *arguments)

        node = await open_node(
            options,
            blocking,
            on_event=lambda raw: flows.kernel(decode_event(raw)),
            on_question=flows.question,
            services=[access_log_service(flows.request, flows.budget)],
        )
        return cls(options, node, files, flows, thread)

    async def _blocking(self, function: Any, *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *arguments)

    # --- life ------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Serve until told to stop. What this leaves behind, the next daemon adopts."""
        node = self._node
        loop = asyncio.get_running_loop()
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        loop.add_reader(node.events.fd, node.events.consume)
        control = ControlServer(
            socket_path(self.options.run_dir),
            {
                "status": self._status,
                "get": self._get,
                "wait": self._wait,
                "explain": self._explain,
                "diff": self._diff,
                **{call: partial(self._look, call) for call in CALLS},
                **node.certificates.calls,
                "metrics": self._metrics_text,
                **node.blocks.calls,
                "fqdn": self._fqdn,
            },
            {"observe": self._observe},
        )
        self._take(self._files.scan())
        await node.server.start()
        await node.clients.start()
        await node.workload_api.start()
        await control.start()
        tasks = [
            asyncio.create_task(work)
            for work in (
                stop.wait(),
                self._serve_metrics(),
                node.envoy.keep(self._on_envoy, node.applier.forget_proxy),
                node.dns.keep(self._wake),
                self._follow_files(),
                self._follow_namespaces(),
                self._follow_containers(),
                self._reconcile_forever(),
                node.certificates.run(self._wake),
            )
        ]
        log.info("running", extra={"node": self.options.node, "config": str(self.options.config)})
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            log.info("stopping; the datapath and Envoy stay up")
            for task in (*tasks, *([self._waiter] if self._waiter else ())):
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            loop.remove_reader(node.events.fd)
            await control.stop()
            self._namespaces.close()
            self._files.close()
            await node.close(self._blocking)
            self._thread.shutdown()

    # --- what may happen -------------------------------------------------------------------------------

    def _wake(self, *, only_look: bool = False) -> None:
        """Set the loop going. `only_look`: nothing is different unless the namespaces are."""
        self._only_looking = only_look and (self._only_looking or not self._dirty.is_set())
        self._revision += 1
        self._dirty.set()

    def _take(self, changes: Mapping[str, str | None]) -> None:
        """New text of files: keep what is good, remember what is wrong, and set the loop going."""
        result = self._store.apply(changes, self._files.modified(changes))
        for problem in result.problems:
            if problem not in self._problems:
                log.warning("%s", problem, extra={"code": problem.code})
        self._from_files, self._problems = result.documents, result.problems
        self._wake()

    @property
    def _documents(self) -> Mapping[ObjectKey, Document]:
        return combined(self._from_files, self._docker.documents) if self._docker else self._from_files

    @property
    def _all_problems(self) -> tuple[Problem, ...]:
        return (*self._problems, *self._docker.problems) if self._docker else self._problems

    async def _follow_files(self) -> None:
        async for changes in self._files.changes():
            self._take(changes)

    async def _follow_namespaces(self) -> None:
        async for _ in self._namespaces.changes():
            self._look_at_namespaces = True
            self._unsettled_pause = UNSETTLED_RETRY[0]
            self._wake(only_look=True)

    async def _follow_containers(self) -> None:
        if self._docker is None:
            await asyncio.Event().wait()
            return
        async for _ in self._docker.changes():
            self._look_at_namespaces = True
            self._unsettled_pause = UNSETTLED_RETRY[0]
            self._wake()

    def _on_envoy(self, adopted: bool) -> None:
        log.info("adopted Envoy" if adopted else "started Envoy")
        self._node.applier.forget_proxy()
        self._wake()

    def _wake_in(self, seconds: float, *, namespaces: bool) -> None:
        def fire() -> None:
            self._look_at_namespaces = self._look_at_namespaces or namespaces
            self._wake(only_look=namespaces)

        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(seconds, fire)

    # --- the loop --------------------------------------------------------------------------------------

    async def _reconcile_forever(self) -> None:
        while True:
            await self._dirty.wait()
            self._dirty.clear()
            revision = self._revision
            try:
                await self._reconcile()
            except Exception as e:
                # A fault of ours. What is in force stays in force; dying would not mend it.
                log.exception("a change could not be applied")
                self._report.failed(f"internal error: {e!r}")
            self._node.certificates.applied(self._addresses_of)
            self._node.held.update(
                {wanted.name: wanted.netns for wanted in self._surroundings.found},
                {kept.workload: kept for kept in self._node.applier.secrets.values()},
                *self._node.applier.trusted,
                self._node.ca.state.jwks,
            )
            async with self._applied:
                self._applied_revision = revision
                self._applied.notify_all()

    async def _reconcile(self) -> None:
        if self._docker is not None and not self._docker.known:
            # To go on without its containers would take them out of force.
            self._report.failed(f"the Docker Engine at {self.options.docker} has not answered yet")
            return
        documents, only_looking = self._documents, self._only_looking
        self._only_looking = False
        wanted = self._wanted(documents)
        addresses: tuple[Address, ...] = self._world.node_addresses
        before = self._surroundings, addresses, self._sought
        if self._look_at_namespaces or wanted != self._sought:
            self._look_at_namespaces = False
            self._sought = wanted
            self._namespaces.watch(w.netns for w in wanted)
            self._surroundings = await self._blocking(attachments, wanted, self._surroundings.found)
            addresses = await self._blocking(self._node.host.node_addresses)
            self._node.applier.links = self._surroundings.up
            await self._blocking(self._leads.settle, on_bridges(self._surroundings))
        if (
            only_looking
            and before == (self._surroundings, addresses, wanted)
            and self._report.settled
            and not self._world.carried
        ):
            self._plan_ahead(wanted)
            return
        world = World(
            self.options.node,
            documents,
            attachments={w.name: found.attachment for w, found in self._surroundings.found.items()},
            other_ports=self._surroundings.other_ports,
            coming=self._surroundings.coming,
            node_addresses=addresses,
            node_cookie=self._node.cookie,
            allocations=self._world.allocations,
            carried=self._world.carried,
            settings=self.options.settings,
        )
        started = time.perf_counter()
        try:
            world, plan = await self._plan(world)
            closed = await self._node.applier.close(plan)
            if closed.carried != world.carried:
                world, plan = await self._plan(replace(world, carried=closed.carried))
        except PenstockError as e:
            log.error("%s", e)
            self._report.failed(str(e))
            return
        compiled = time.perf_counter() - started - closed.seconds
        self._world = world
        applied: Applied = await self._node.applier.apply(plan, closed)
        if self._docker is not None:
            await self._blocking(self._hosts_files.apply, self._hosts_blocks(world, self._docker))
        self._flows.look_up(partial(directory, world, plan))
        self._report.update(world, plan, applied, self._all_problems)
        if self._planner.facts is not None:
            self._inspector.update(self._planner.facts, plan)
            self._node.clients.offer(partial(self._for_grpc, self._planner.facts))
        log.info(
            "applied",
            extra={
                "objects": len(documents),
                "kernel_entries_changed": applied.changed_entries,
                "compile_ms": round(compiled * 1000, 2),
                "took_ms": {k: round(v * 1000, 2) for k, v in applied.seconds.items()},
                "errors": list(applied.errors),
                "waiting_for": applied.waiting_for,
            },
        )
        self._plan_ahead(wanted)
        if applied.waiting_for and (self._waiter is None or self._waiter.done()):
            self._waiter = asyncio.create_task(self._when_envoy_answers())
        if abs(len(documents) - self._frozen) > self._frozen // 4 + 32:
            # What is there after a great change stays: collections need not look at it again, which cost tens
            # of milliseconds each.
            self._frozen = len(documents)
            gc.unfreeze()
            gc.collect()
            gc.freeze()

    @staticmethod
    def _hosts_blocks(world: World, docker: DockerSource) -> dict[int, str]:
        """Process of each container → what its hosts file is to hold of ours."""
        namespaces = {}
        for document, workload in world.of_kind(Workload):
            name = workload.spec.container
            if name and docker.pid(name) and docker.has_hosts_file(name):
                namespaces[docker.pid(name)] = document.key.namespace
        texts = blocks(world, set(namespaces.values()))
        return {pid: texts[namespace] for pid, namespace in namespaces.items()}

    def _addresses_of(self, workload: str) -> tuple[Address, ...]:
        """Of ``namespace/name``, on whatever node."""
        everyone = self._planner.facts.members.all if self._planner.facts else ()
        found = (m.addresses for m in everyone if f"{m.namespace}/{m.document.key.name}" == workload)
        return tuple(address for addresses in found for address in addresses)

    def _for_grpc(self, facts: Facts) -> Snapshot:
        return Snapshot.of_resources(self._proxyless.build(facts.served, facts.mesh.tables))

    def _plan_ahead(self, wanted: list[Wanted]) -> None:
        """What will set the loop going without an event: certificates, and namespaces not yet whole."""
        found = self._surroundings.found
        absent = [w for w in wanted if Path(w.netns).exists() and not (w in found and found[w].settled)]
        if absent and self._unsettled_pause <= UNSETTLED_RETRY[1]:
            self._wake_in(self._unsettled_pause, namespaces=True)
            self._unsettled_pause *= 2
        else:
            renewal = self._node.issuer.next_renewal()
            if renewal is not None:
                self._wake_in(max(renewal - time.time(), 1.0), namespaces=False)

    async def _when_envoy_answers(self) -> None:
        published = self._node.server.published
        while published is not None:
            outcome = await self._node.server.wait_acked(tuple(published.types), 60.0)
            if outcome.done:
                # Listeners may turn active a moment after their ACK; the next round looks for itself.
                self._wake_in(0.2, namespaces=False)
                return

    def _local_netns(self, workload: Workload) -> str | None:
        spec = workload.spec
        if spec.node not in (None, self.options.node):
            return None
        if spec.container and self._docker is not None:
            pid = self._docker.pid(spec.container)
            return f"/proc/{pid}/ns/net" if pid else None
        return spec.netns

    def _wanted(self, documents: Mapping[ObjectKey, Document]) -> list[Wanted]:
        found = []
        for key, document in documents.items():
            value = document.value
            if isinstance(value, Workload):
                netns = self._local_netns(value)
                if netns:
                    found.append(Wanted((key.namespace, key.name), netns, value.spec.interface))
        return found

    async def _plan(self, world: World) -> tuple[World, Plan]:
        """The Plan, and the World with all numbers, saved first. Raises AllocationError, StateError."""
        numbered, plan = self._planner.plan(world)
        if numbered.allocations != world.allocations:
            await self._blocking(state.save, self.options.state_dir, numbered.allocations)
        return numbered, plan

    # --- what the other commands ask ---------------------------------------------------------------------

    async def _status(self, _: dict[str, Any]) -> Any:
        await self._look_at_dns()
        return self._report.status(busy=self._applied_revision < self._revision, documents=self._documents)

    async def _look_at_dns(self) -> None:
        with suppress(NoDnsError):
            self._report.dns = await self._node.dns.ask("state")
            return
        self._report.dns = None

    async def _fqdn(self, _: dict[str, Any]) -> Any:
        found = await self._node.dns.ask("names")
        return with_rules(found, self._planner.facts)

    async def _metrics_text(self, _: dict[str, Any]) -> Any:
        # In an object: gRPC makes bytes of a bare text before our serialiser sees it.
        await self._look_at_dns()
        return {"text": self.metrics.text().decode()}

    async def _serve_metrics(self) -> None:
        async with served(self.options.metrics, self.metrics.text):
            await asyncio.Event().wait()

    def _of_status(self) -> Iterator[Metric]:
        busy = self._applied_revision < self._revision
        found = self._report.status(busy=busy, documents=self._documents)
        yield from of_status(found)
        entries = self._node.certificates.entries(time.time())
        yield from of_certificates(found["certificate_health"], entries)

    async def _get(self, request: dict[str, Any]) -> Any:
        return self._report.get(**request)

    async def _explain(self, request: dict[str, Any]) -> Any:
        # Here, not in a thread: it fills the same memory of rights as the next compilation reads.
        recorded: list[dict[str, Any]] = []
        with suppress(NoDnsError):
            recorded = await self._node.dns.ask("names")
        return self._inspector.explain(request, recorded)

    async def _diff(self, request: dict[str, Any]) -> Any:
        return await asyncio.to_thread(self._inspector.diff, request)

    async def _look(self, call: str, request: dict[str, Any]) -> Any:
        return await asyncio.to_thread(self._inspector.look, call, request)

    async def _wait(self, request: dict[str, Any]) -> Any:
        """Read the folder again, and answer when all is settled or the time is over."""
        changes = self._files.scan()
        if changes:
            self._take(changes)
        with suppress(TimeoutError):
            async with asyncio.timeout(request["seconds"]), self._applied:
                await self._applied.wait_for(
                    lambda: self._applied_revision >= self._revision and self._report.settled
                )
        await self._look_at_dns()
        return self._report.status(busy=self._applied_revision < self._revision, documents=self._documents)

    async def _observe(self, request: dict[str, Any]) -> AsyncIterator[Any]:
        async for record in self._flows.follow(request["last"], keep_on=request["follow"]):
            yield record
