"""The stage of the demo: the lab, one daemon for each node, and the folder of manifests that they watch.

What it keeps true: it runs beside others (lab, run directories and CA are its own), and whatever happens
inside the `with` block, nothing is left: daemons end, `penstock down` runs for each node, then the lab
goes, then the directories.
"""

from __future__ import annotations

import asyncio
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from penstock import lab
from penstock.control import ControlClient, socket_path
from penstock.demo.evidence import Counters, counters
from penstock.demo.watch import Record, Watch
from penstock.envoy.admin import Admin
from penstock.envoy.bootstrap import admin_socket
from penstock.errors import HostError, InputError, NoDaemonError, PenstockError
from penstock.files import write_atomically
from penstock.lab import LabNode, LabSpec

START = 30.0
"""Seconds within which a daemon must answer and everything must be in force."""
STOP = 10.0
RUN = Path("/run")
PENSTOCK = (sys.executable, "-m", "penstock.cli")

Say = Callable[[str], None]
Tell = Callable[[Record], str]


@dataclass(frozen=True, slots=True)
class Node:
    """One node of the lab with its daemon."""

    name: str
    netns: Path
    address: str
    run_dir: Path
    log: Path
    control: ControlClient
    watch: Watch

    def status(self) -> dict[str, Any]:
        found = self.control.call("status")
        assert isinstance(found, dict)
        return found

    def counters(self) -> Counters:
        """Packets by reason, counted in this node's kernel."""
        return counters(self.status())

    def proxied(self) -> int:
        """How many connections this node's Envoy has ever accepted from workloads and other nodes."""
        stats = asyncio.run(Admin(admin_socket(self.run_dir)).stats("listener."))
        return sum(
            value
            for name, value in stats.items()
            if name.endswith(".downstream_cx_total")
            and ".worker_" not in name
            and not name.startswith("listener.admin.")
        )

    def settle(self, seconds: float = START) -> None:
        """Have the folder read again and wait until all is in force. Raises PenstockError."""
        found = self.control.call("wait", timeout=seconds + 5, seconds=seconds)
        refused = [o for o in found["objects"] if o["state"] != "in force"]
        if not found["settled"] or refused:
            why = [*found["errors"], *(f"{o['kind']} {o['name']}: {o['message']}" for o in refused)]
            raise PenstockError(
                f"{self.name}: not everything is in force: " + "; ".join(why or [found["waiting_for"]])
            )


@dataclass(frozen=True, slots=True)
class Mesh:
    spec: LabSpec
    nodes: Mapping[str, Node]
    config: Path
    tell: Tell

    def netns(self, workload: str) -> Path:
        return self.spec.workload(workload).netns

    def address(self, workload: str) -> str:
        return str(self.spec.workload(workload).address(4))

    def node_of(self, workload: str) -> Node:
        return self.nodes[self.spec.workload(workload).node]

    def vip(self, service: str) -> str:
        """The address of a Service, as the daemon gave it. The same on every node."""
        node = next(iter(self.nodes.values()))
        found = node.control.call(
            "get", kind="Service", object_name=service, namespace="default", all_namespaces=False
        )
        return str(found["spec"]["clusterIP"])

    def told(self, record: Record | None) -> str:
        """A record in one line, without the folder's long name."""
        return self.tell(record).replace(f"{self.config}/", "") if record else "no record came"

    def edit(self, file: str, change: Callable[[list[Any]], None]) -> None:
        """Rewrite a manifest of the folder, as an editor that saves would: renamed into place."""
        path = self.config / file
        documents = list(yaml.safe_load_all(path.read_text()))
        change(documents)
        write_atomically(path, yaml.safe_dump_all(documents, sort_keys=False).encode(), durable=False)


@contextmanager
def mesh(examples: Path, say: Say, tell: Tell) -> Iterator[Mesh]:
    """Bring everything up from `examples` (lab.yaml and manifests/), and take it down at the end.

    `say` is told of progress, `tell` prints a record of `observe` in one line. SIGTERM and SIGHUP end the
    block as Ctrl-C does. Raises InputError, HostError or LabError when it cannot be brought up.
    """
    with _signals() as hush, ExitStack() as stack:
        try:
            yield _bring_up(examples, stack, say, tell)
        finally:
            hush()
            say("clearing up")


def _bring_up(examples: Path, stack: ExitStack, say: Say, tell: Tell) -> Mesh:
    name = f"demo-{secrets.token_hex(3)}"
    spec = lab.load({**_lab_file(examples), "name": name})
    # Sockets live below it, whose paths may have 107 bytes, and Envoy's user passes through.
    directory = Path(tempfile.mkdtemp(prefix=f"penstock-{name}-", dir=RUN))
    stack.callback(shutil.rmtree, directory, ignore_errors=True)
    directory.chmod(0o711)

    say(f"lab {name}: {len(spec.nodes)} nodes, {len(spec.workloads)} workloads")
    stack.callback(lab.down, name)
    lab.up(spec)

    config = directory / "config"
    shutil.copytree(examples / "manifests", config)
    lab.write_manifests(spec, config)

    say("a daemon and an Envoy on each node")
    processes = {n.name: _start(directory, config, n.name, n.netns, stack) for n in spec.nodes}
    nodes = {n.name: _ready(directory, n, processes[n.name], stack) for n in spec.nodes}
    for node in nodes.values():
        try:
            node.settle()
        except PenstockError as error:
            raise HostError(str(error), hint=_last_words(node.log)) from None
    say("everything is in force")
    return Mesh(spec, nodes, config, tell)


def _lab_file(examples: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load((examples / "lab.yaml").read_text())
    except (OSError, yaml.YAMLError) as error:
        raise InputError(
            f"cannot read the demo's lab: {error}", hint="--examples names the folder examples/ of a checkout"
        ) from None
    if not isinstance(content, dict):
        raise InputError(f"{examples / 'lab.yaml'}: not a lab")
    return content


def _start(
    directory: Path, config: Path, name: str, netns: Path, stack: ExitStack
) -> subprocess.Popen[bytes]:
    run_dir = directory / name
    run_dir.mkdir()
    with (directory / f"{name}.log").open("wb") as log:
        # A session of its own: the terminal's Ctrl-C is for us, and we end it in order.
        process = lab.run_in(
            netns,
            [
                *PENSTOCK, "run", "--config", str(config), "--run-dir", str(run_dir), "--node", name,
                "--state-dir", str(directory / f"{name}.state"), "--ca-dir", str(directory / "ca"),
            ],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    stack.callback(_stop, process, run_dir, netns)
    return process


def _stop(process: subprocess.Popen[bytes], run_dir: Path, netns: Path) -> None:
    """End the daemon, then all that it leaves up on purpose."""
    process.terminate()
    try:
        process.wait(STOP)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    down = lab.run_in(
        netns,
        [*PENSTOCK, "down", "--run-dir", str(run_dir)],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    output, _ = down.communicate(timeout=60)
    if down.returncode:
        print(f"penstock down: {output.decode(errors='replace').strip()}", file=sys.stderr)


def _ready(directory: Path, node: LabNode, process: subprocess.Popen[bytes], stack: ExitStack) -> Node:
    """The node once its daemon answers."""
    run_dir, log = directory / node.name, directory / f"{node.name}.log"
    control = ControlClient(run_dir)
    stack.callback(control.__exit__)
    deadline = time.monotonic() + START
    while not _answers(control, run_dir):
        if process.poll() is not None or time.monotonic() > deadline:
            ended = process.returncode
            what = f"ended with {ended}" if ended is not None else "does not answer"
            raise HostError(f"the daemon of {node.name} {what}", hint=_last_words(log))
        time.sleep(0.05)  # a daemon that is starting can tell nobody yet
    watch = stack.enter_context(Watch(run_dir))
    return Node(node.name, node.netns, str(node.addresses[0]), run_dir, log, control, watch)


def _answers(control: ControlClient, run_dir: Path) -> bool:
    if not socket_path(run_dir).exists():
        return False
    try:
        control.call("status", timeout=5)
    except NoDaemonError:
        return False
    return True


def _last_words(log: Path) -> str:
    return "\n  ".join(log.read_text(errors="replace").splitlines()[-5:]) or "it said nothing"


@contextmanager
def _signals() -> Iterator[Callable[[], None]]:
    """Signals that end a program interrupt the block; after `hush()` none disturbs the clearing up."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    def hush() -> None:
        # A handler and not SIG_IGN, which the commands that clear up would inherit.
        for number in before:
            signal.signal(number, lambda *_: None)

    before = {n: signal.signal(n, interrupt) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield hush
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
