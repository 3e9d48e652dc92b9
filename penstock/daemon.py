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
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from penstock import rundir, state
from penstock.answers import Answers
from penstock.apply import Applied
from penstock.earlier import ran_earlier
from penstock.envoy.proxyless import Proxyless
from penstock.errors import PenstockError
from penstock.facts import Facts
from penstock.hostnames import HostsFiles, of_containers
from penstock.inspect import Inspector
from penstock.manifests.document import Document, ObjectKey
from penstock.manifests.kinds import Workload
from penstock.manifests.problem import Problem
from penstock.manifests.store import Store
from penstock.node import Node, Options, open_node
from penstock.observe.als import access_log_service
from penstock.observe.flows import Flows
from penstock.plan import Plan
from penstock.planner import Planner
from penstock.progress import Progress
from penstock.redirect.layout import decode_event
from penstock.redirect.leads import Leads
from penstock.report import Report, directory
from penstock.sources.combine import combined
from penstock.sources.files import FileSource
from penstock.sources.places import Places
from penstock.world import Address, World
from penstock.xds.snapshot import Resource, Snapshot, resource

if TYPE_CHECKING:
    from penstock.sources.docker import DockerSource

log = logging.getLogger(__name__)


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
        flows.connection = node.applier.kernel.looked_at.told
        self._report = Report(options, node, flows)
        self._inspector = Inspector(node.tables, lambda: node.server.connected > 0)
        self._store = Store()
        self._planner = Planner()
        self._proxyless: Proxyless[Resource] = Proxyless(resource)
        self._docker = _docker_source(options.docker) if options.docker else None
        self._places = Places(
            options.node,
            self._docker,
            node_addresses=node.host.own.of_node,
            leads=Leads(rundir.leads_record(options.run_dir), options.settings.service_ranges),
            blocking=self._blocking,
        )
        self._hosts_files = HostsFiles(rundir.hosts_record(options.run_dir))
        self._from_files: Mapping[ObjectKey, Document] = {}
        self._problems: tuple[Problem, ...] = ()
        self._world = World(options.node, {}, allocations=node.allocations, settings=options.settings)
        self._began = not node.datapath.adopted
        """Nobody has put policies in force before us, and neither have we yet."""
        self._frozen = -64
        """How many objects there were when memory was last put aside."""
        self._progress = Progress()
        self._timer: asyncio.TimerHandle | None = None
        self._waiter: asyncio.Task[None] | None = None
        self._report.facts = lambda: self._planner.facts
        self._answers = Answers(
            options,
            node,
            report=self._report,
            inspector=self._inspector,
            flows=flows,
            planner=self._planner,
            progress=self._progress,
            documents=lambda: self._documents,
            read_again=self._read_again,
        )

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
        control = self._answers.server()
        self._take(self._files.scan())
        await node.server.start()
        await node.clients.start()
        await node.workload_api.start()
        await control.start()
        tasks = [
            asyncio.create_task(work)
            for work in (
                stop.wait(),
                self._answers.serve_metrics(),
                self._report.watch(),
                node.envoy.keep(self._on_envoy, node.applier.forget_proxy),
                node.dns.keep(self._progress.wake),
                self._follow_files(),
                self._follow_namespaces(),
                self._follow_containers(),
                self._reconcile_forever(),
                node.certificates.run(self._progress.wake),
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
            self._places.close()
            self._files.close()
            await node.close(self._blocking)
            self._thread.shutdown()

    # --- what may happen -------------------------------------------------------------------------------

    def _take(self, changes: Mapping[str, str | None]) -> None:
        """New text of files: keep what is good, remember what is wrong, and set the loop going."""
        result = self._store.apply(changes, self._files.modified(changes))
        for problem in result.problems:
            if problem not in self._problems:
                log.warning("%s", problem, extra={"code": problem.code})
        self._from_files, self._problems = result.documents, result.problems
        self._progress.wake()

    def _read_again(self) -> None:
        changes = self._files.scan()
        if changes:
            self._take(changes)

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
        async for _ in self._places.changes():
            self._progress.wake(only_look=True)

    async def _follow_containers(self) -> None:
        if self._docker is None:
            await asyncio.Event().wait()
            return
        async for _ in self._docker.changes():
            self._places.expect()
            self._progress.wake()

    def _on_envoy(self, adopted: bool) -> None:
        log.info("adopted Envoy" if adopted else "started Envoy")
        self._node.applier.forget_proxy()
        self._progress.wake()

    def _wake_in(self, seconds: float, *, namespaces: bool) -> None:
        def fire() -> None:
            if namespaces:
                self._places.stale()
            self._progress.wake(only_look=namespaces)

        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(seconds, fire)

    # --- the loop --------------------------------------------------------------------------------------

    async def _reconcile_forever(self) -> None:
        while True:
            happened, only_looking = await self._progress.next()
            try:
                await self._reconcile(only_looking=only_looking)
            except Exception as e:
                # A fault of ours. What is in force stays in force; dying would not mend it.
                log.exception("a change could not be applied")
                self._report.failed(f"internal error: {e!r}")
            self._node.certificates.applied(self._addresses_of)
            self._node.held.update(
                {wanted.name: wanted.netns for wanted in self._places.surroundings.found},
                {kept.workload: kept for kept in self._node.applier.secrets.values()},
                *self._node.applier.trusted,
                self._node.ca.state.jwks,
            )
            await self._progress.done(happened)

    async def _reconcile(self, *, only_looking: bool) -> None:
        if self._docker is not None and not self._docker.known:
            # To go on without its containers would take them out of force.
            self._report.failed(f"the Docker Engine at {self.options.docker} has not answered yet")
            return
        documents = self._documents
        different = await self._places.look(documents)
        surroundings = self._places.surroundings
        self._node.applier.kernel.links = surroundings.up
        if only_looking and not different and self._report.settled and not self._world.carried:
            self._plan_ahead()
            return
        world = World(
            self.options.node,
            documents,
            attachments={w.name: found.attachment for w, found in surroundings.found.items()},
            other_ports=surroundings.other_ports,
            coming=surroundings.coming,
            node_addresses=self._places.addresses,
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
            await self._blocking(self._hosts_files.apply, of_containers(world, self._docker))
        self._flows.look_up(partial(directory, world, plan))
        self._report.update(world, plan, applied, self._all_problems)
        if self._began and self._report.settled:
            self._began = False
            self._say_what_ran_earlier(world, plan)
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
        self._plan_ahead()
        if applied.waiting_for and (self._waiter is None or self._waiter.done()):
            self._waiter = asyncio.create_task(self._when_envoy_answers())
        if abs(len(documents) - self._frozen) > self._frozen // 4 + 32:
            # What is there after a great change stays: collections need not look at it again, which cost tens
            # of milliseconds each.
            self._frozen = len(documents)
            gc.unfreeze()
            gc.collect()
            gc.freeze()

    def _say_what_ran_earlier(self, world: World, plan: Plan) -> None:
        if self._docker is None or not plan.policies:
            return
        started = {
            f"{document.key.namespace}/{document.key.name}": self._docker.started(workload.spec.container)
            for document, workload in world.of_kind(Workload)
            if workload.spec.container
        }
        self._report.earlier = ran_earlier(started, time.time())
        if self._report.earlier:
            log.warning("%s", self._report.earlier)

    def _addresses_of(self, workload: str) -> tuple[Address, ...]:
        """Of ``namespace/name``, on whatever node."""
        everyone = self._planner.facts.members.all if self._planner.facts else ()
        found = (m.addresses for m in everyone if f"{m.namespace}/{m.document.key.name}" == workload)
        return tuple(address for addresses in found for address in addresses)

    def _for_grpc(self, facts: Facts) -> Snapshot:
        return Snapshot.of_resources(self._proxyless.build(facts.served, facts.mesh.tables))

    def _plan_ahead(self) -> None:
        """What will set the loop going without an event: namespaces not yet whole, and certificates."""
        soon = self._places.retry()
        if soon is not None:
            self._wake_in(soon, namespaces=True)
            return
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

    async def _plan(self, world: World) -> tuple[World, Plan]:
        """The Plan, and the World with all numbers, saved first. Raises AllocationError, StateError."""
        numbered, plan = self._planner.plan(world)
        if numbered.allocations != world.allocations:
            await self._blocking(state.save, self.options.state_dir, numbered.allocations)
        return numbered, plan
