"""A lab of one node or two, with or without daemons: what every benchmark stands on.

What it keeps true: whatever way a benchmark ends, nothing of it is left; what a killed one left is cleared
before the next; and only one runs at a time, since two would measure each other.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from penstock import lab
from penstock.bench.errors import BenchError
from penstock.control import ControlClient, socket_path
from penstock.lab import LabSpec, netns
from penstock.redirect.datapath import take_down

NODE, OTHER_NODE = NODES = ("node-a", "node-b")
THIRD_NODE = "node-c"
"""Where a benchmark needs one more."""
_RUN = Path("/run")
_SCRATCH = _RUN / "penstock-bench"
_PREFIX = "bench-"
START = 60.0
"""Seconds that a daemon and its Envoy have to bring the first configuration in force."""


@contextmanager
def alone() -> Iterator[None]:
    """Inside the block no other benchmark runs on this machine. Raises BenchError if one does."""
    if os.geteuid():
        raise BenchError("benchmarks make network namespaces", hint="run it as root")
    # A name in the abstract namespace goes with its process; a lock file would be left.
    with socket.socket(socket.AF_UNIX) as lock:
        try:
            lock.bind("\0penstock-bench")
        except OSError as e:
            raise BenchError("another benchmark runs on this machine", hint="wait for its end") from e
        for left in [n for n in lab.names() if n.startswith(_PREFIX)]:
            _clear(left)
        shutil.rmtree(_SCRATCH, ignore_errors=True)
        yield


def workload(name: str, **more: Any) -> dict[str, Any]:
    """An entry of a lab's file: a workload with an identity of its own, told by `app`."""
    return {"name": name, "node": NODE, "labels": {"app": name}, **more}


def policy(name: str, subject: str, **rules: Any) -> dict[str, Any]:
    """A CiliumNetworkPolicy that selects the workload `subject`."""
    return {
        "apiVersion": "cilium.io/v2",
        "kind": "CiliumNetworkPolicy",
        "metadata": {"name": name},
        "spec": {"endpointSelector": {"matchLabels": {"app": subject}}, **rules},
    }


def allow(peer: str, *ports: tuple[int, str], http: Sequence[Mapping[str, str]] = ()) -> dict[str, Any]:
    """An ingress rule: the workload `peer` may come to these (port, protocol), by these `http` rules."""
    to: dict[str, Any] = {"ports": [{"port": str(port), "protocol": protocol} for port, protocol in ports]}
    if http:
        to["rules"] = {"http": [dict(rule) for rule in http]}
    return {"fromEndpoints": [{"matchLabels": {"app": peer}}], "toPorts": [to]}


@dataclass(frozen=True, slots=True)
class Site:
    """A lab that is up. `directory` is for files of the benchmark, and goes with it."""

    spec: LabSpec
    directory: Path

    def run_in(self, workload: str, argv: Sequence[str], **popen: Any) -> subprocess.Popen[Any]:
        return lab.run_in(self.spec.workload(workload).netns, argv, **popen)

    def address(self, workload: str) -> str:
        return str(self.spec.workload(workload).address(4))


@contextmanager
def site(
    name: str,
    workloads: Iterable[Mapping[str, Any]],
    directory: Path,
    *,
    nodes: int = 1,
    routes: bool = False,
    bridged: bool = False,
) -> Iterator[Site]:
    """A lab of `nodes` of NODES with these workloads, called bench-NAME, with no daemon and no program.

    `routes` joins the nodes, which a daemon does otherwise. `bridged` hangs the workloads on a bridge for
    each node, instead of on routed veths.
    """
    ranges = {
        node: [f"10.244.{number}.0/24", f"fd00:10:244:{number}::/64"]
        for number, node in enumerate((*NODES, THIRD_NODE)[:nodes], 1)
    }
    spec = lab.load(
        {
            "name": _PREFIX + name,
            "nodes": {
                node: {"podCIDRs": own, "bridges": {"net": own} if bridged else {}}
                for node, own in ranges.items()
            },
            "workloads": [{**each, "bridges": ["net"]} if bridged else dict(each) for each in workloads],
            "routes": routes,
        }
    )
    lab.up(spec)
    try:
        yield Site(spec, directory)
    finally:
        _clear(spec.name)


@contextmanager
def scratch() -> Iterator[Path]:
    """A directory for the files of one benchmark; all may read in it, since servers drop their rights."""
    directory = _SCRATCH
    directory.mkdir()
    directory.chmod(0o755)
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _run_dir(lab_name: str, node: str) -> Path:
    return _RUN / (f"penstock-{lab_name}" if node == NODE else f"penstock-{lab_name}-{node}")


def _clear(name: str) -> None:
    """Daemons, datapaths, Envoys and lab of this name, as far as they are there."""
    for each in (*NODES, THIRD_NODE):
        run_dir, node = _run_dir(name, each), netns.path_of(f"{name}-{each}")
        if run_dir.is_dir():
            if node.exists():
                netns.end_processes([node.name])
                _down(name, each)
            take_down(run_dir / "bpf")
            shutil.rmtree(run_dir, ignore_errors=True)
    lab.down(name)


_PENSTOCK = (sys.executable, "-m", "penstock.cli")


class DaemonUnderTest:
    """The daemon of a site's node. `log` is what it says; `start` gives it a process."""

    def __init__(
        self, run_dir: Path, start: Callable[[], subprocess.Popen[Any]], config: Path, log: Path
    ) -> None:
        self.run_dir, self.config, self.log = run_dir, config, log
        self._start = start
        self._stack = ExitStack()
        self._begin()

    def _begin(self) -> None:
        self._process = self._start()
        self.pid = self._process.pid
        _wait_answering(self._process, self.run_dir, self.log)
        self._client = self._stack.enter_context(ControlClient(self.run_dir))

    def restart(self) -> None:
        """End it as an init system does, and start it anew: Envoy and the kernel's programs stay."""
        self._stack.close()
        self._end()
        self.again()

    def kill(self) -> None:
        """SIGKILL: what it has put up stands on. `again` starts another."""
        self._stack.close()
        self._process.kill()
        self._process.wait()
        socket_path(self.run_dir).unlink(missing_ok=True)

    def again(self) -> None:
        """Another in place of one that was killed; returns when it answers. Raises BenchError."""
        self._stack = ExitStack()
        self._begin()

    def call(self, name: str, **arguments: Any) -> Any:
        """What a command asks of it. Raises PenstockError."""
        return self._client.call(name, timeout=300, **arguments)

    def envoy_pid(self) -> int:
        return int(self._client.call("status")["envoy"]["pid"])

    def dns_pid(self) -> int | None:
        """None where no DNS proxy runs."""
        found: int | None = self._client.call("status")["dns"]["pid"]
        return found

    def gateway_address(self, name: str) -> str:
        """The first address of the Gateway `name`."""
        found = self._client.call(
            "get", kind="gateway", object_name=name, namespace="default", all_namespaces=False
        )
        return str(found["status"]["addresses"][0]["value"])

    def settle(self, seconds: float = 10.0) -> None:
        """Until everything in the folder is in force. Raises BenchError if it is not in time."""
        found = self._client.call("wait", timeout=seconds + 30, seconds=seconds)
        if not found["settled"]:
            bad = [f"{m['kind']} {m['name']}" for m in found["missing"]] + list(found["errors"])
            raise BenchError(
                f"not settled after {seconds} s: {', '.join(map(str, bad)) or found['waiting_for']}"
            )

    def write(self, name: str, *documents: Mapping[str, Any]) -> None:
        """Put a manifest into the folder, whole at once."""
        self.prepare(name, *documents)()

    def prepare(self, name: str, *documents: Mapping[str, Any]) -> Any:
        """Write a manifest beside its place; the function given back renames it into place."""
        path, part = self.config / f"{name}.yaml", self.config / f"{name}.part"
        part.write_text(yaml.safe_dump_all(list(documents), sort_keys=False))
        return lambda: os.rename(part, path)

    def applied(self) -> list[dict[str, Any]]:
        """What the daemon logged about each change that it applied, in milliseconds."""
        return [{"compile": entry["compile_ms"], **entry["took_ms"]} for entry in self._applied()]

    def applied_at(self) -> list[float]:
        """When each was in force, in seconds since the epoch."""
        return [datetime.fromisoformat(entry["time"]).timestamp() for entry in self._applied()]

    def _applied(self) -> list[dict[str, Any]]:
        found = []
        for line in self.log.read_text().splitlines():
            with suppress(ValueError):
                entry = json.loads(line)
                if entry.get("message") == "applied":
                    found.append(entry)
        return found

    def stop(self) -> None:
        self._stack.close()
        self._end()

    def _end(self) -> None:
        with suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(15)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


@contextmanager
def daemon(
    site: Site,
    policies: Sequence[Mapping[str, Any]],
    *,
    workloads: bool = True,
    node: str = NODE,
    ca_dir: Path | None = None,
    options: Sequence[str] = (),
) -> Iterator[DaemonUnderTest]:
    """A node's daemon with the lab's manifests and `policies` in force; at the end all of it goes.

    Without `workloads` it is not told of the lab: what it needs by itself. Daemons that are to trust each
    other share `ca_dir`. `options` go to `penstock run`.
    """
    name, run_dir = site.spec.name, _run_dir(site.spec.name, node)
    config, state, log = (site.directory / f"{name}-{node}.{what}" for what in ("d", "state", "log"))
    shutil.rmtree(config, ignore_errors=True)
    config.mkdir()
    if workloads:
        lab.write_manifests(site.spec, config)
    if policies:
        (config / "policies.yaml").write_text(
            yaml.safe_dump_all([dict(p) for p in policies], sort_keys=False)
        )
    said = ["--node", node, *(["--ca-dir", str(ca_dir)] if ca_dir else []), *options]
    where = site.spec.node(node).netns
    with _launched(where, run_dir, config, state, log, said) as running:
        running.settle(START)
        yield running


@contextmanager
def launched(
    where: Path, run_dir: Path, directory: Path, manifests: Sequence[Mapping[str, Any]], *options: str
) -> Iterator[DaemonUnderTest]:
    """A daemon of the network namespace `where`, with its files in `directory`; at the end all of it goes."""
    config = directory / "config"
    config.mkdir(parents=True)
    (config / "manifests.yaml").write_text(yaml.safe_dump_all([dict(m) for m in manifests], sort_keys=False))
    with _launched(where, run_dir, config, directory / "state", directory / "log", options) as running:
        yield running


@contextmanager
def _launched(
    where: Path, run_dir: Path, config: Path, state: Path, log: Path, options: Sequence[str]
) -> Iterator[DaemonUnderTest]:
    run_dir.mkdir(exist_ok=True)
    argv = [*_PENSTOCK, "run", "--config", config, "--run-dir", run_dir, "--state-dir", state, *options]

    def start() -> subprocess.Popen[Any]:
        with log.open("ab") as output:
            return lab.run_in(
                where,
                [*map(str, argv)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )

    running = DaemonUnderTest(run_dir, start, config, log)
    try:
        yield running
    finally:
        running.stop()
        _down_at(where, run_dir)


def _down(name: str, node: str) -> None:
    _down_at(netns.path_of(f"{name}-{node}"), _run_dir(name, node))


def _down_at(where: Path, run_dir: Path) -> None:
    """`penstock down`, in the namespace of the daemon's node."""
    lab.run_in(where, [*_PENSTOCK, "down", "--run-dir", str(run_dir)]).wait()


def _wait_answering(process: subprocess.Popen[Any], run_dir: Path, log: Path) -> None:
    deadline = time.monotonic() + START
    while not socket_path(run_dir).exists():
        if process.poll() is not None or time.monotonic() > deadline:
            words = log.read_text(errors="replace").strip()[-1500:]
            raise BenchError(f"the daemon does not run\n{words}")
        time.sleep(0.02)  # nobody tells that a socket was bound
