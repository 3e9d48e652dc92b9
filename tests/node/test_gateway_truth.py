"""Status is the truth: in the instant in which Programmed turns True a request is served; while Envoy does
not answer, or is gone, it is False."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic
from typing import Any

import pytest
from clients import ask, until
from conftest import MeshFactory
from objects import gateway, http_route, listener, service, to
from rig import SETTLE, Mesh, workload
from test_gateway_http import conditions
from test_gateway_tls import Pair, Tls

from penstock.apply import PATIENCE
from penstock.control import ControlClient

SHOWN = Pair("a.example")


@pytest.fixture(scope="module")
def mesh(make_mesh: MeshFactory) -> Mesh:
    return make_mesh(workload("client", "node-a"), workload("api", "node-a", serves=True))


class Watch:
    """Asks for one Gateway's status again and again, over one connection."""

    def __init__(self, mesh: Mesh, name: str = "gw") -> None:
        self._client = ControlClient(mesh.on("client").run_dir)
        self._name = name

    def status(self, generation: int) -> dict[str, Any] | None:
        """None as long as the object is not of this generation."""
        items = self._client.call(
            "get", kind="gateway", object_name=None, namespace="default", all_namespaces=False
        )["items"]
        found = [i for i in items if i["metadata"]["name"] == self._name]
        if not found or found[0]["metadata"]["generation"] != generation:
            return None
        return dict(found[0]["status"])

    def programmed(self, generation: int) -> str | None:
        """The address, as soon as the Gateway and all of its listeners are Programmed."""
        status = self.status(generation)
        if status is None:
            return None
        told = [status["conditions"], *(each["conditions"] for each in status["listeners"])]
        if any(conditions(listed)["Programmed"][0] != "True" for listed in told):
            return None
        return str(status["addresses"][0]["value"])

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.__exit__()


def scenario(number: int) -> list[dict[str, Any]]:
    """Each time a new listener, a new certificate, and routes to a Service that was not there before."""
    backend = service(f"api-{number}", {"port": 80, "targetPort": 8080}, selector={"app": "api"})
    shown = SHOWN.secret(f"cert-{number}")
    ended = {"certificateRefs": [{"name": f"cert-{number}"}]}
    return [
        backend,
        shown,
        gateway(
            "gw",
            listener("http", 8000 + number),
            listener("https", 9000 + number, "HTTPS", hostname="a.example", tls=ended),
        ),
        http_route(f"r-{number}", "gw", {"backendRefs": [to(f"api-{number}")]}),
    ]


def test_programmed_is_true_in_the_instant_in_which_it_turns_true(mesh: Mesh) -> None:
    mesh.apply(service("none"))
    failed = []
    with Watch(mesh) as watch:
        for number in range(1, 101):
            mesh.write("scenario.yaml", mesh.text(*scenario(number)))
            deadline = monotonic() + SETTLE
            while (address := watch.programmed(number)) is None:
                assert monotonic() < deadline, f"change {number} was not told to be in force"
            try:
                if number % 4:
                    status = ask(mesh["client"], address, 8000 + number).status
                else:
                    with Tls(mesh, "a.example", SHOWN, port=9000 + number) as connection:
                        status = connection.ask("a.example").status
            except OSError as error:
                status = repr(error)  # type: ignore[assignment]
            if status != 200:
                failed.append((number, status))
    assert failed == []


@contextmanager
def stopped(mesh: Mesh) -> Iterator[None]:
    pid = mesh.on("client").envoy_pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def test_while_envoy_does_not_answer_it_stays_false(mesh: Mesh) -> None:
    """Also longer than a change waits; then Envoy goes on, and so does the change."""
    mesh.apply(gateway("before"))
    seen: set[str] = set()
    with Watch(mesh) as watch, stopped(mesh):
        mesh.write("scenario.yaml", mesh.text(*scenario(7)))
        deadline = monotonic() + PATIENCE + 3
        while monotonic() < deadline:
            status = watch.status(1)
            if status is not None:
                told = [status["conditions"], *(each["conditions"] for each in status["listeners"])]
                seen |= {conditions(listed)["Programmed"][0] for listed in told}
        assert seen == {"False"}
    with Watch(mesh) as watch:
        deadline = monotonic() + SETTLE
        while (address := watch.programmed(1)) is None:
            assert monotonic() < deadline, "it goes on, and is not told to be in force"
        assert ask(mesh["client"], address, 8007).status == 200
    mesh.wait()


def test_without_envoy_it_turns_false_until_another_one_serves(mesh: Mesh) -> None:
    mesh.apply(service("none"))
    mesh.apply(*scenario(8))
    with Watch(mesh) as watch:
        for _ in range(5):
            assert watch.programmed(1) is not None
            mesh.on("client").kill_envoy_only()
            until("it is told that nothing serves", lambda: watch.programmed(1) is None)
            deadline = monotonic() + SETTLE
            while (address := watch.programmed(1)) is None:
                assert monotonic() < deadline, "nothing serves"
            assert ask(mesh["client"], address, 8008).status == 200
    mesh.wait()
