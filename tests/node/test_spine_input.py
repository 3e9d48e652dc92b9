"""Bad input, and files as editors and scripts leave them: told with file and line, never in force."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from clients import ask, echoes, until
from conftest import MeshFactory
from objects import policy, ports, select, service
from rig import Mesh, workload

GOOD = """\
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: good}
spec:
  endpointSelector: {matchLabels: {app: api}}
  ingress:
  - fromEndpoints: [{matchLabels: {app: client}}]
    toPorts:
    - ports: [{port: "8080", protocol: TCP}]
      rules:
        http: [{method: GET, path: "/a"}]
"""
BESIDE = GOOD.replace("name: good", "name: beside").replace("8080", "8081")

SHOWN = "CiliumNetworkPolicy default/good"


def beside(old: str, new: str) -> str:
    """A good policy, and one in which `old` is `new`; the second begins in line 13."""
    assert old in GOOD
    return BESIDE + "---\n" + GOOD.replace(old, new)


BAD: dict[str, tuple[str, str, int, str]] = {
    # What is written → (text, object as it is called, line, word of the message)
    "syntax": (BESIDE + "---\nkind: [unclosed\n", "", 14, ""),
    "unknown kind": (
        beside("kind: Cilium", "kind: Cillium"),
        "CilliumNetworkPolicy default/good",
        14,
        "CiliumNetworkPolicy",
    ),
    "wrong group": (beside("cilium.io/v2", "networking.cilium.io/v1"), SHOWN, 13, "cilium.io/v2"),
    "wrong version": (beside("cilium.io/v2", "cilium.io/v1"), SHOWN, 13, "cilium.io/v2"),
    "wrong type": (
        beside("[{matchLabels: {app: client}}]", "client"),
        SHOWN,
        19,
        "spec.ingress[0].fromEndpoints",
    ),
    "unknown field": (beside("fromEndpoints", "fromEndpoint"), SHOWN, 19, "fromEndpoints"),
    "bad expression": (
        beside('"/a"', '"/a("'),
        SHOWN,
        23,
        "spec.ingress[0].toPorts[0].rules.http[0].path",
    ),
}


@pytest.fixture(scope="module")
def mesh(make_mesh: MeshFactory) -> Mesh:
    return make_mesh(
        workload("client", "node-a"), workload("other", "node-a"), workload("api", "node-a", serves=True)
    )


@pytest.fixture(autouse=True)
def clean(mesh: Mesh) -> Iterator[None]:
    """Each test begins with nothing but the lab's manifests, and ends with the daemon that it found."""
    mesh.apply()
    daemon = mesh.on("api")
    pid = daemon.status()["pid"]
    yield
    for path in mesh.config.iterdir():
        if not path.name.startswith("lab-") and path.name != "scenario.yaml":
            path.unlink()
    assert daemon.status()["pid"] == pid


def code(mesh: Mesh, path: str, port: int = 8080) -> int | None:
    try:
        return ask(mesh["client"], mesh["api"].address(), port, path, timeout=0.6).status
    except TimeoutError:
        return None


def refused(mesh: Mesh) -> list[dict[str, Any]]:
    return [o for o in mesh.on("api").wait()["objects"] if o["state"] == "refused"]


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_is_told_and_the_rest_applies(mesh: Mesh, case: str) -> None:
    text, shown, line, word = BAD[case]
    path = mesh.write("bad.yaml", text)
    (entry,) = refused(mesh)
    message = entry["message"]
    assert message.startswith(f"{path}:{line}: ")
    assert shown in message
    assert word in message
    # What stands in the same file and is right is in force; the wrong one is not, and closes nothing either.
    assert (code(mesh, "/a", 8081), code(mesh, "/b", 8081)) == (200, 403)


@pytest.mark.parametrize("case", [c for c in BAD if c not in ("syntax", "unknown kind", "wrong group")])
def test_the_last_good_version_stays_in_force(mesh: Mesh, case: str) -> None:
    mesh.write("bad.yaml", BESIDE + "---\n" + GOOD)
    assert refused(mesh) == []
    assert (code(mesh, "/a"), code(mesh, "/b")) == (200, 403)
    mesh.write("bad.yaml", BAD[case][0])
    (entry,) = refused(mesh)
    assert entry["last_good"] == "in force"
    assert (code(mesh, "/a"), code(mesh, "/b")) == (200, 403)
    mesh.write("bad.yaml", BESIDE + "---\n" + GOOD.replace('"/a"', '"/b"'))
    assert refused(mesh) == []
    assert (code(mesh, "/a"), code(mesh, "/b")) == (403, 200)


def test_a_syntax_error_keeps_all_that_the_file_said(mesh: Mesh) -> None:
    mesh.write("bad.yaml", GOOD)
    assert (refused(mesh), code(mesh, "/b")) == ([], 403)
    mesh.write("bad.yaml", GOOD + "   broken: [\n")
    assert len(refused(mesh)) == 1
    assert (code(mesh, "/a"), code(mesh, "/b")) == (200, 403)


def test_a_selector_that_matches_nothing_is_told(mesh: Mesh) -> None:
    path = mesh.write("nobody.yaml", GOOD.replace("app: api", "app: apy"))
    problems = mesh.on("api").wait()["problems"]
    (found,) = [p for p in problems if p["file"] == str(path)]
    assert (found["severity"], found["line"], found["kind"]) == ("warning", 5, "CiliumNetworkPolicy")
    assert found["name"] == "good"
    assert found["text"].startswith(f"{path}:5: CiliumNetworkPolicy default/good: spec.endpointSelector")


@pytest.mark.parametrize(
    "junk",
    [
        b"\x00\x01\x02",
        b"\xff\xfe\x00",
        b"- just\n- a list\n",
        b"{}",
        b"null\n",
        b"a: &a [*a]\n",
        b"!!python/object:os.system x\n",
    ],
)
def test_no_bytes_end_the_daemon(mesh: Mesh, junk: bytes) -> None:
    (mesh.config / "junk.yaml").write_bytes(junk)
    mesh.write("good.yaml", GOOD)
    mesh.wait()
    assert (code(mesh, "/a"), code(mesh, "/b")) == (200, 403)


# --- files -------------------------------------------------------------------------------------------------


def test_a_file_that_is_deleted(mesh: Mesh) -> None:
    path = mesh.write("good.yaml", GOOD)
    mesh.wait()
    assert code(mesh, "/b") == 403
    path.unlink()
    mesh.wait()
    assert code(mesh, "/b") == 200


def test_a_file_that_is_renamed_changes_nothing(mesh: Mesh) -> None:
    path = mesh.write("good.yaml", GOOD)
    mesh.wait()
    daemon = mesh.on("api")
    stop, leaks = threading.Event(), []

    def look() -> None:
        while not stop.is_set():
            if code(mesh, "/b") != 403:
                leaks.append(1)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        for name in ("other.yaml", "third.yaml", "good.yaml"):
            path = path.rename(mesh.config / name)
            mesh.wait()
    finally:
        stop.set()
        thread.join()
    assert leaks == []
    (entry,) = [o for o in daemon.status()["objects"] if o["name"] == "good"]
    assert (entry["file"], entry["state"]) == (str(path), "in force")


def test_a_file_in_a_subdirectory_that_comes_and_goes(mesh: Mesh) -> None:
    folder = mesh.config / "team"
    folder.mkdir()
    document = service("s", {"port": 1}, selector={"app": "api"})
    (folder / "good.json").write_text(json.dumps(document))
    until("the Service is there", lambda: any(o["name"] == "s" for o in mesh.on("api").status()["objects"]))
    (folder / "good.json").unlink()
    folder.rmdir()
    until("the Service is gone", lambda: all(o["name"] != "s" for o in mesh.on("api").status()["objects"]))


def test_a_file_that_is_half_written_is_not_taken(mesh: Mesh) -> None:
    """Its first half would be a policy that allows everything."""
    half = GOOD.index("    toPorts")
    path = mesh.config / "good.yaml"
    with path.open("w") as file:
        file.write(GOOD[:half])
        file.flush()
        os.fsync(file.fileno())
        mesh.wait()
        assert echoes(mesh["other"], mesh["api"].address(), 9090, timeout=3)
        assert all(o["name"] != "good" for o in mesh.on("api").status()["objects"])
        file.write(GOOD[half:])
    mesh.wait()
    assert (code(mesh, "/a"), code(mesh, "/b")) == (200, 403)
    with path.open("r+") as file:
        file.truncate(half)
        file.flush()
        mesh.wait()
        assert (code(mesh, "/a"), code(mesh, "/b")) == (200, 403)
        file.seek(half)
        file.write(GOOD[half:].replace('"/a"', '"/b"'))
    mesh.wait()
    assert (code(mesh, "/a"), code(mesh, "/b")) == (403, 200)


def test_many_changes_in_a_row_end_in_the_last(mesh: Mesh) -> None:
    for number in range(50):
        mesh.write("good.yaml", GOOD.replace('"/a"', f'"/{number}"'))
    mesh.wait()
    assert (code(mesh, "/48"), code(mesh, "/49")) == (403, 200)


def test_two_files_that_say_the_same_object(mesh: Mesh) -> None:
    """One of them is refused, and both are named; which rule holds does not depend on luck."""
    first = mesh.write("a.yaml", GOOD)
    mesh.wait()
    second = mesh.write("b.yaml", GOOD.replace('"/a"', '"/b"'))
    (entry,) = refused(mesh)
    assert str(first) in entry["message"]
    assert str(second) in entry["message"]
    assert (code(mesh, "/a"), code(mesh, "/b")) == (200, 403)


def test_a_policy_of_more_than_the_kernel_holds_is_refused_before_anything_is_written(mesh: Mesh) -> None:
    """Limits are seen in `status`; nothing is left half-written."""
    limits = mesh.on("api").status()["limits"]
    assert all(0 <= used <= size for used, size in limits.values())
    mesh.apply(
        policy(
            "in",
            select(app="api"),
            ingress=[{"fromEndpoints": [select(app="client")], "toPorts": [ports(*range(1, 40))]}],
        )
    )
    assert mesh.on("api").status()["limits"]["map policy"][0] > limits["map policy"][0]
