"""The daemon of one node: sources → World → compile → Plan → appliers, in one loop.

Whatever happens (a file, a namespace, Envoy, a certificate's age) only sets the loop going; the loop
reads the facts as they are, compiles, and applies the difference. So nothing depends on the order of
events, and a daemon that starts anew ends in the same state. SIGTERM ends it and leaves the datapath and
Envoy up; `tear_down` removes all.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from penstock import state
from penstock.allocate import allocate
from penstock.apply import Applied, Applier
from penstock.compiler import compile_world, names
from penstock.control import ControlServer, socket_path
from penstock.envoy.bootstrap import xds_socket
from penstock.envoy.process import UID, EnvoyProcess
from penstock.errors import HostError, PenstockError
from penstock.manifests.document import Document, ObjectKey
from penstock.manifests.kinds import Workload
from penstock.manifests.problem import Problem
from penstock.manifests.review import review
from penstock.manifests.store import Store
from penstock.mtls.ca import CertificateAuthority
from penstock.mtls.issuer import Issuer
from penstock.observe.als import access_log_service
from penstock.observe.flows import Flows
from penstock.plan import Plan
from penstock.redirect.datapath import Datapath, take_down
from penstock.redirect.host import HostSettings
from penstock.redirect.layout import decode_event
from penstock.redirect.libbpf import RingBuffer, open_pin
from penstock.redirect.tables import Tables
from penstock.report import Report, directory
from penstock.sources.files import FileSource
from penstock.sources.netns import NamespaceEvents, Wanted, attachments
from penstock.world import Address, Attachment, Settings, WorkloadName, World
from penstock.xds.server import XdsServer

log = logging.getLogger(__name__)

# A namespace may be told of before its addresses are there; nobody outside it sees them come.
UNSETTLED_RETRY = (0.02, 2.0)


@dataclass(frozen=True, slots=True)
class Options:
    """What `penstock run` was asked for. `ca_dir` None keeps the CA in the state directory."""

    config: Path
    run_dir: Path
    state_dir: Path
    node: str
    ca_dir: Path | None = None
    settings: Settings = field(default_factory=Settings)
    concurrency: int | None = None


def pins(run_dir: Path) -> Path:
    return run_dir / "bpf"


def host_record(run_dir: Path) -> Path:
    return run_dir / "host.json"


class Daemon:
    def __init__(self, options: Options) -> None:
        self.options = options
        self.flows = Flows()
        self.report = Report(options)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="blocking")
        self._store = Store()
        self._documents: Mapping[ObjectKey, Document] = {}
        self._problems: tuple[Problem, ...] = ()
        self._attached: dict[WorkloadName, Attachment] = {}
        self._dirty = asyncio.Event()
        self._look_at_namespaces = True
        self._revision = 0
        self._applied_revision = -1
        self._applied = asyncio.Condition()
        self._unsettled_pause = UNSETTLED_RETRY[0]
        self._timer: asyncio.TimerHandle | None = None
        self._waiter: asyncio.Task[None] | None = None

    async def _blocking(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *arguments)

    # --- life ------------------------------------------------------------------------------------------

    async def run(self, started: Callable[[], None] = lambda: None) -> None:
        """Until SIGTERM or SIGINT. Raises PenstockError if the node cannot carry it."""
        options = self.options
        for directory_ in (options.run_dir, options.state_dir):
            directory_.mkdir(parents=True, exist_ok=True)
        # Envoy's user passes through to its own folder and to the xDS socket, and sees nothing else.
        options.run_dir.chmod(0o711)
        lock = _lock(options.run_dir)
        files = FileSource(str(options.config))
        settings = options.settings
        ca = await self._blocking(
            CertificateAuthority.open, options.ca_dir or options.state_dir / "ca", settings.trust_domain
        )
        allocations = await self._blocking(state.load, options.state_dir)
        host: HostSettings = await self._blocking(HostSettings, host_record(options.run_dir))
        await self._blocking(host.up, settings.proxy_source_ports)
        datapath = Datapath(pins(options.run_dir))
        tables = Tables(datapath.pins, settings.proxy_source_ports, host_access=settings.host_access)
        datapath.attach_cgroup()
        server = XdsServer(
            _fresh(xds_socket(options.run_dir)), services=[access_log_service(self.flows.request)], group=UID
        )
        envoy = EnvoyProcess(options.run_dir, node=options.node, concurrency=options.concurrency)
        issuer = Issuer(ca, directory=options.state_dir / "svids")
        self._applier = Applier(
            settings=settings,
            datapath=datapath,
            tables=tables,
            host=host,
            server=server,
            admin=envoy.admin,
            issuer=issuer,
            bundle=ca.bundle_pem,
            blocking=self._blocking,
        )
        self._issuer, self._server, self._host = issuer, server, host
        self._files = files
        self._node_cookie = int(await self._blocking(host.cookie))
        self._world = World(options.node, {}, allocations=allocations, settings=settings)
        namespaces = NamespaceEvents()
        events = RingBuffer(open_pin(datapath.pins / "events"), self._on_event)
        loop = asyncio.get_running_loop()
        loop.add_reader(events.fd, events.consume)
        self.report.bind(self._applier, server, envoy)
        control = ControlServer(
            socket_path(options.run_dir),
            {"status": self._status, "get": self._get, "wait": self._wait},
            {"observe": self._observe},
        )
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)

        self._take(files.scan())
        await server.start()
        tasks = [
            asyncio.create_task(envoy.keep(self._on_envoy)),
            asyncio.create_task(self._follow_files(files)),
            asyncio.create_task(self._follow_namespaces(namespaces)),
            asyncio.create_task(self._reconcile_forever(namespaces)),
        ]
        await control.start()
        started()
        log.info("running", extra={"node": options.node, "config": str(options.config)})
        stopping = asyncio.create_task(stop.wait())
        done, _ = await asyncio.wait([*tasks, stopping], return_when=asyncio.FIRST_COMPLETED)
        failed = [t.exception() for t in done if t is not stopping and not t.cancelled()]
        log.info("stopping; the datapath and Envoy stay up")
        for task in (*tasks, stopping, *([self._waiter] if self._waiter else ())):
            task.cancel()
        await asyncio.gather(*tasks, stopping, return_exceptions=True)
        await control.stop()
        await server.stop()
        loop.remove_reader(events.fd)
        events.close()
        namespaces.close()
        files.close()
        tables.close()
        datapath.close()
        await self._blocking(host.close)
        self._thread.shutdown()
        os.close(lock)
        for error in failed:
            if error is not None:
                raise error

    # --- what may happen -------------------------------------------------------------------------------

    def _wake(self) -> None:
        self._revision += 1
        self._dirty.set()

    def _take(self, changes: Mapping[str, str | None]) -> None:
        """New text of files: keep what is good, remember what is wrong, and set the loop going."""
        result = self._store.apply(changes, self._files.modified)
        for problem in result.problems:
            if problem not in self._problems:
                log.warning("%s", problem, extra={"code": problem.code})
        self._documents, self._problems = result.documents, result.problems
        self._look_at_namespaces = True
        self._wake()

    async def _follow_files(self, files: FileSource) -> None:
        async for changes in files.changes():
            self._take(changes)

    async def _follow_namespaces(self, namespaces: NamespaceEvents) -> None:
        async for _ in namespaces.changes():
            self._look_at_namespaces = True
            self._unsettled_pause = UNSETTLED_RETRY[0]
            self._wake()

    def _on_envoy(self, adopted: bool) -> None:
        log.info("adopted Envoy" if adopted else "started Envoy")
        self._applier.forget_proxy()
        self._wake()

    def _on_event(self, raw: bytes) -> None:
        self.flows.kernel(decode_event(raw))

    def _wake_in(self, seconds: float, *, namespaces: bool) -> None:
        def fire() -> None:
            self._look_at_namespaces = self._look_at_namespaces or namespaces
            self._wake()

        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(seconds, fire)

    # --- the loop --------------------------------------------------------------------------------------

    async def _reconcile_forever(self, namespaces: NamespaceEvents) -> None:
        while True:
            await self._dirty.wait()
            self._dirty.clear()
            revision = self._revision
            try:
                await self._reconcile(namespaces)
            except Exception as e:
                # A fault of ours. What is in force stays, and the next change is tried: dying would not mend it.
                log.exception("a change could not be applied")
                self.report.failed(f"internal error: {e!r}")
            async with self._applied:
                self._applied_revision = revision
                self._applied.notify_all()

    async def _reconcile(self, namespaces: NamespaceEvents) -> None:
        documents = self._documents
        wanted = self._wanted(documents)
        addresses: tuple[Address, ...] = self._world.node_addresses
        if self._look_at_namespaces:
            self._look_at_namespaces = False
            namespaces.watch(w.netns for w in wanted)
            self._attached = await self._blocking(attachments, wanted)
            addresses = await self._blocking(self._host.node_addresses)
        world = World(
            self.options.node,
            documents,
            attachments=dict(self._attached),
            node_addresses=addresses,
            node_cookie=self._node_cookie,
            allocations=self._world.allocations,
            settings=self.options.settings,
        )
        started = time.perf_counter()
        try:
            world, plan = await self._compile(world)
        except PenstockError as e:
            log.error("%s", e)
            self.report.failed(str(e))
            return
        compiled = time.perf_counter() - started
        self._world = world
        self.flows.directory = directory(world, plan)
        applied: Applied = await self._applier.apply(plan)
        # Files only: what is wrong with each by itself is known; what needs them all is looked at here.
        self.report.update(world, plan, applied, (*self._problems, *review(documents.values())))
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
        self._plan_ahead(wanted, applied)

    def _plan_ahead(self, wanted: list[Wanted], applied: Applied) -> None:
        """What will set the loop going without an event: certificates, and namespaces not yet whole."""
        absent = [w for w in wanted if w.name not in self._attached and Path(w.netns).exists()]
        if absent and self._unsettled_pause <= UNSETTLED_RETRY[1]:
            self._wake_in(self._unsettled_pause, namespaces=True)
            self._unsettled_pause *= 2
        else:
            renewal = self._issuer.next_renewal()
            if renewal is not None:
                self._wake_in(max(renewal - time.time(), 1.0), namespaces=False)
        if applied.waiting_for and (self._waiter is None or self._waiter.done()):
            self._waiter = asyncio.create_task(self._when_envoy_answers())

    async def _when_envoy_answers(self) -> None:
        published = self._server.published
        while published is not None:
            outcome = await self._server.wait_acked(tuple(published.types), 60.0)
            if outcome.done:
                # Listeners may turn active a moment after their ACK; the next round looks for itself.
                self._wake_in(0.2, namespaces=False)
                return

    @staticmethod
    def _local_netns(workload: Workload, node: str) -> str | None:
        return workload.spec.netns if workload.spec.node in (None, node) else None

    def _wanted(self, documents: Mapping[ObjectKey, Document]) -> list[Wanted]:
        found = []
        for key, document in documents.items():
            value = document.value
            if isinstance(value, Workload):
                netns = self._local_netns(value, self.options.node)
                if netns:
                    found.append(Wanted((key.namespace, key.name), netns, value.spec.interface))
        return found

    async def _compile(self, world: World) -> tuple[World, Plan]:
        """Give out the numbers that are missing, and compile. Raises AllocationError."""
        before = world.allocations
        # Backends are found through identities, and Services are known only with them: two rounds at most.
        world = self._allocate(world, tuple(before.listener_ports))
        plan = compile_world(world)
        if plan.unallocated:
            world = self._allocate(world, plan.listener_names)
            plan = compile_world(world)
        if world.allocations != before:
            await self._blocking(state.save, self.options.state_dir, world.allocations)
        return world, plan

    def _allocate(self, world: World, listeners: tuple[str, ...]) -> World:
        wanted = names(world)
        return replace(
            world,
            allocations=allocate(
                world.allocations,
                identities=wanted.identities,
                vips=wanted.vips,
                listener_names=listeners,
                service_names=wanted.services,
                settings=world.settings,
            ),
        )

    # --- what the other commands ask ---------------------------------------------------------------------

    async def _status(self, _: dict[str, Any]) -> Any:
        return self.report.status(busy=self._applied_revision < self._revision)

    async def _get(self, request: dict[str, Any]) -> Any:
        return self.report.get(**request)

    async def _wait(self, request: dict[str, Any]) -> Any:
        """Read the folder again, and answer when all is settled or the time is over."""
        changes = self._files.scan()
        if changes:
            self._take(changes)
        with suppress(TimeoutError):
            async with asyncio.timeout(request["seconds"]), self._applied:
                await self._applied.wait_for(
                    lambda: self._applied_revision >= self._revision and self.report.settled
                )
        return self.report.status(busy=self._applied_revision < self._revision)

    async def _observe(self, request: dict[str, Any]) -> AsyncIterator[Any]:
        async for record in self.flows.follow(request["last"], keep_on=request["follow"]):
            yield record


def _lock(run_dir: Path) -> int:
    """One daemon for each run directory."""
    fd = os.open(run_dir / "daemon.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as e:
        os.close(fd)
        raise HostError(
            f"another daemon runs at {run_dir}", hint="give this one a --run-dir of its own, or stop that one"
        ) from e
    return fd


def _fresh(socket: Path) -> Path:
    socket.unlink(missing_ok=True)
    return socket


def tear_down(run_dir: Path) -> None:
    """Remove programs, maps, rules, routes, sysctls and Envoy of `run_dir`; twice is fine.

    Raises HostError while a daemon runs there.
    """
    if not run_dir.is_dir():
        return
    lock = _lock(run_dir)
    try:
        asyncio.run(EnvoyProcess(run_dir, node="").stop())
        take_down(pins(run_dir))
        host = HostSettings(host_record(run_dir))
        host.down()
        host.close()
        for left in (socket_path(run_dir), xds_socket(run_dir)):
            left.unlink(missing_ok=True)
    finally:
        os.close(lock)
        (run_dir / "daemon.lock").unlink(missing_ok=True)
