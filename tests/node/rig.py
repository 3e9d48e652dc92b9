"""A mesh for a test: a lab, one real daemon for each of its nodes, and clients inside its workloads.

The daemons are processes of their own (`penstock run`), started in their node's network namespace with run
and state directories of this mesh alone. `Mesh.close` ends everything and then looks whether anything is
left. A client is a socket made inside a workload's namespace and used from the test's own process.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from clients import until
from pinned import lives, object_info, open_pin

from penstock import lab
from penstock.control import ControlClient
from penstock.envoy.admin import Admin
from penstock.envoy.bootstrap import admin_socket
from penstock.envoy.process import base_id
from penstock.errors import NoDaemonError
from penstock.lab import LabNode, LabSpec, LabWorkload

PENSTOCK = [sys.executable, "-m", "penstock.cli"]
START = 60.0
"""Seconds in which a daemon answers: the kernel looks through every BPF program first."""
SETTLE = 15.0
"""Seconds in which a change must be in force: generous, since the machine may be busy with other things."""


@dataclass
class Daemon:
    """The daemon of one node, and what it left on the machine when it is not running."""

    node: LabNode
    config: Path
    base: Path
    run_dir: Path
    ca: tuple[str, ...]
    """The options that say where the CA is."""
    options: tuple[str, ...] = ()
    process: subprocess.Popen[bytes] | None = None
    before: str = ""
    seen: dict[str, set[int]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.node.name

    @property
    def log(self) -> Path:
        return self.base / f"{self.name}.log"

    @cached_property
    def envoy_log(self) -> Path:
        return self.run_dir / "envoy" / "envoy.log"

    def start(self) -> None:
        command = [*PENSTOCK, "run", "--config", str(self.config), "--run-dir", str(self.run_dir)]
        command += ["--state-dir", str(self.base / f"state-{self.name}"), *self.ca]
        with self.log.open("ab") as output:
            self.process = lab.run_in(
                self.node.netns,
                [*command, "--node", self.name, *self.options],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, f"the daemon ended\n{self.tail()}"
        try:
            self.call("status")
        except NoDaemonError:
            return False
        return True

    def call(self, name: str, **arguments: Any) -> Any:
        with ControlClient(self.run_dir) as client:
            return client.call(name, **arguments)

    def status(self) -> dict[str, Any]:
        return dict(self.call("status"))

    def wait(self, seconds: float = SETTLE) -> dict[str, Any]:
        """What `penstock status --wait` does; AssertionError if not all is settled in time."""
        found = dict(self.call("wait", seconds=seconds))
        if not found["settled"]:
            what = {k: found[k] for k in ("errors", "waiting_for", "missing", "envoy")}
            raise AssertionError(f"{self.name} is not settled: {what}\n{self.tail()}")
        return found

    def counter(self, reason: str) -> int:
        return int(self.status()["counters"].get(reason, {}).get("packets", 0))

    def observed(self, last: int = 200) -> list[dict[str, Any]]:
        with ControlClient(self.run_dir) as client:
            return list(client.stream("observe", last=last, follow=False))

    @property
    def admin(self) -> Admin:
        return Admin(admin_socket(self.run_dir))

    def envoy_stats(self, prefix: str) -> dict[str, int]:
        return dict(asyncio.run(self.admin.stats(prefix)))

    def downstream(self) -> int:
        """Connections that the node's Envoy took from anybody but the daemon."""
        found = self.envoy_stats("listener.")
        return sum(
            n for key, n in found.items() if key.endswith("downstream_cx_total") and "admin" not in key
        )

    @property
    def envoy_pid(self) -> int | None:
        """None while there is none: never 0, which for `os.kill` is everybody in this process's group."""
        with suppress(FileNotFoundError, ValueError):
            return int((self.run_dir / "envoy" / "envoy.pid").read_text()) or None
        return None

    def kill_envoy(self) -> None:
        """SIGKILL, and back when another one runs."""
        before = self.envoy_pid
        self.kill_envoy_only()
        until("another Envoy", lambda: self.envoy_pid not in (None, before))

    def kill_envoy_only(self) -> None:
        """SIGKILL, and no waiting for another; nothing where none runs."""
        if pid := self.envoy_pid:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def end(self) -> None:
        """SIGTERM, and SIGKILL if that does not end it; fine if it does not run."""
        if self.process is not None and self.process.poll() is None:
            try:
                self.stop()
            finally:
                self.kill()

    def kill(self) -> None:
        """SIGKILL, as by the kernel when memory runs out."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        """SIGTERM; the datapath and Envoy stay up."""
        assert self.process is not None
        self.process.terminate()
        assert self.process.wait(timeout=15) == 0, self.tail()

    def tail(self, lines: int = 25) -> str:
        with suppress(FileNotFoundError):
            return "\n".join(self.log.read_text().splitlines()[-lines:])
        return ""

    def take_down(self) -> None:
        done = lab.run_in(
            self.node.netns,
            [*PENSTOCK, "down", "--run-dir", str(self.run_dir)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        output, _ = done.communicate(timeout=30)
        assert done.returncode == 0, output.decode()

    # --- what a daemon must not leave ------------------------------------------------------------------

    def remember(self) -> None:
        """Note the numbers of all links, programs and maps that are pinned now."""
        for pin in (self.run_dir / "bpf").rglob("*"):
            # bpffs makes *.debug by itself, for reading.
            if pin.is_file() and pin.suffix != ".debug":
                fd = open_pin(pin)
                kind, info = object_info(fd)
                self.seen.setdefault(kind, set()).add(info[1])
                if kind == "link":
                    self.seen.setdefault("prog", set()).add(info[2])
                os.close(fd)

    def left(self) -> list[str]:
        """What is still there of a daemon that was taken down."""
        found = [f"{kind} {n}" for kind, ids in self.seen.items() for n in sorted(ids) if lives(kind, n)]
        mounts = Path("/proc/self/mountinfo").read_text().splitlines()
        found += [line for line in mounts if f" {self.run_dir}/" in line]
        segment = f"envoy_shared_memory_{base_id(self.run_dir)}"
        found += [p.name for p in Path("/dev/shm").iterdir() if p.name[:-1] == segment]
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with suppress(OSError):
                    command = (entry / "cmdline").read_bytes()
                    if str(self.run_dir).encode() in command:
                        found.append(command.replace(b"\0", b" ").decode())
        return found

    def look_back(self) -> None:
        """AssertionError if anything is left or not as before, or the daemon told of a fault of ours."""
        with suppress(AssertionError):
            until("all is gone", lambda: not self.left())
        problems = [f"left: {what}" for what in self.left()]
        changed = set(self.before.splitlines()) ^ set(self.network().splitlines())
        problems += [f"not as before: {line}" for line in sorted(changed)]
        lines = self.log.read_text().splitlines()
        problems += [line for line in lines if "internal error" in line or "Traceback" in line]
        assert not problems, "\n".join(dict.fromkeys(problems))

    def network(self) -> str:
        """The node's rules, routes and settings that a daemon may touch."""
        commands = [["ip", f, "rule"] for f in ("-4", "-6")]
        commands += [["ip", f, "route", "show", "table", t] for f in ("-4", "-6") for t in ("main", "2004")]
        commands += [["ip", "-br", "addr"]]
        text = ""
        for command in commands:
            process = lab.run_in(
                self.node.netns, command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
            )
            lines = process.communicate(timeout=10)[0].splitlines(keepends=True)
            # Workloads come and go in a test; they are the lab's.
            text += f"{' '.join(command)}\n{''.join(line for line in lines if 'veth-' not in line)}"
        with lab.entered(self.node.netns):
            for name in ("ip_local_port_range", "ip_forward", "conf/all/rp_filter"):
                text += f"{name} {Path('/proc/sys/net/ipv4', name).read_text()}"
        return text


class CaServer:
    """`penstock ca serve` in a node's network namespace."""

    def __init__(self, node: LabNode, base: Path, config: Path) -> None:
        self.node, self.base, self.config = node, base, config
        self.process: subprocess.Popen[bytes] | None = None

    def options(self, name: str) -> tuple[str, ...]:
        address = f"{self.node.addresses[0]}:7443"
        return ("--ca-server", address, "--join-token-file", str(self.base / f"{name}.token"))

    def start(self) -> None:
        command = [*PENSTOCK, "ca", "serve", "--ca-dir", str(self.base / "ca"), "--config", str(self.config)]
        log = self.base / "ca.log"
        with log.open("ab") as output:
            self.process = lab.run_in(
                self.node.netns, command, stdin=subprocess.DEVNULL, stdout=output, stderr=output
            )
        # A directory without one is made by it.
        until("the CA is there", (self.base / "ca/intermediate.crt").exists, SETTLE)

    def token(self, name: str, *options: str) -> None:
        command = ["ca", "token", "--ca-dir", str(self.base / "ca"), "--node", name]
        command += ["--out", str(self.base / f"{name}.token"), *options]
        subprocess.run([*PENSTOCK, *command], check=True)

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.wait(timeout=15)
            self.process = None


class Mesh:
    """A lab with its daemons, all reading one folder of manifests."""

    def __init__(
        self, spec: LabSpec, base: Path, *, serve_ca: bool = False, options: tuple[str, ...] = ()
    ) -> None:
        """With `serve_ca` the nodes share no directory: the first of them has a CA server, all join it."""
        self.spec = spec
        self.base = base
        self.config = base / "config"
        self.config.mkdir()
        lab.write_manifests(spec, self.config)
        self.ca = CaServer(spec.nodes[0], base, self.config) if serve_ca else None
        self.daemons = {
            node.name: Daemon(
                node,
                self.config,
                base,
                Path(f"/run/{spec.name}-{node.name}"),
                self.ca.options(node.name) if self.ca else ("--ca-dir", str(base / "ca")),
                options,
            )
            for node in spec.nodes
        }

    def __getitem__(self, name: str) -> LabWorkload:
        return self.spec.workload(name)

    def on(self, workload: str) -> Daemon:
        """The daemon of the node that a workload is on."""
        return self.daemons[self.spec.workload(workload).node]

    def open(self) -> None:
        if self.ca:
            self.ca.start()
            for name in self.daemons:
                self.ca.token(name)
        for daemon in self.daemons.values():
            daemon.before = daemon.network()
            daemon.start()
        self.wait_for_daemons()
        self.wait()

    def wait_for_daemons(self) -> None:
        for daemon in self.daemons.values():
            until(f"the daemon of {daemon.name} answers", daemon.answers, START)

    def wait(self) -> None:
        for daemon in self.daemons.values():
            daemon.wait()

    def write(self, name: str, text: str) -> Path:
        """Put one file into the folder, renamed into place."""
        part = self.config / f".{name}.part"
        part.write_text(text)
        return part.rename(self.config / name)

    def apply(self, *documents: dict[str, Any]) -> None:
        """Exactly these objects besides the lab's own, in force on every node."""
        self.write("scenario.yaml", self.text(*documents))
        self.wait()

    @staticmethod
    def text(*documents: dict[str, Any]) -> str:
        """Never empty: a file that becomes empty keeps its last content for a while."""
        return "# objects\n" + yaml.safe_dump_all(documents, sort_keys=False)

    def vip(self, name: str, version: int = 4) -> str:
        node = next(iter(self.daemons.values()))
        found = node.call("get", kind="service", object_name=name, namespace="default", all_namespaces=False)
        return next(a for a in found["spec"]["clusterIPs"] if (":" in a) == (version == 6))

    def close(self) -> None:
        """End everything. AssertionError if a daemon does not end well or leaves anything."""
        problems = []
        for daemon in self.daemons.values():
            for step in (daemon.remember, daemon.end, daemon.take_down, daemon.take_down, daemon.look_back):
                try:
                    step()
                except (AssertionError, OSError, subprocess.SubprocessError) as error:
                    problems.append(f"{daemon.name}: {step.__name__}: {error}")
        if self.ca:
            self.ca.stop()
        lab.down(self.spec.name)
        for daemon in self.daemons.values():
            shutil.rmtree(daemon.run_dir, ignore_errors=True)
        assert not problems, "\n".join(problems)


def workload(name: str, node: str, *, serves: bool = False, **more: Any) -> dict[str, Any]:
    """A workload labelled ``app: NAME``; one that serves has HTTP at 8080 and 8081, echo at 9090 and 9091."""
    entry: dict[str, Any] = {
        "name": name,
        "node": node,
        "labels": {"app": name},
        "serviceAccountName": name,
        **more,
    }
    if serves:
        entry["ports"] = [
            {"name": "http", "containerPort": 8080},
            {"name": "alt", "containerPort": 8081},
            {"name": "echo", "containerPort": 9090},
            {"name": "dgram", "containerPort": 9091, "protocol": "UDP"},
        ]
        echo = [*PENSTOCK, "lab", "echo", "--name", name, "--http", "8080", "--http", "8081"]
        entry["run"] = [[*echo, "--tcp", "9090", "--udp", "9091"]]
    return entry


@contextmanager
def mesh(
    spec: LabSpec,
    base: Path,
    *,
    serve_ca: bool = False,
    options: tuple[str, ...] = (),
    prepare: Callable[[LabSpec], None] = lambda _: None,
) -> Iterator[Mesh]:
    """Bring a mesh up, and take it down whatever happens. `prepare` changes the lab before daemons start."""
    lab.up(spec)
    made: Mesh | None = None
    try:
        prepare(spec)
        made = Mesh(spec, base, serve_ca=serve_ca, options=options)
        made.open()
        yield made
    finally:
        if made is None:
            lab.down(spec.name)
        else:
            made.close()
