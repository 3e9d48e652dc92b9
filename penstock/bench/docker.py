"""`penstock bench docker`: the bars of Docker Compose, with a Docker Engine of its own.

`up`: from `docker-compose up`, with the images there, to the first answer that needed a policy's consent: the
demo's frontend answers 200 when it has reached api by its virtual address and path. Where the command itself
stands then, and the daemon, is kept beside it.

`crowd`: a hundred containers, of which half more come and go one after the other, while two others send
requests to a third by a route and by an L4 Service. For each that comes: from the engine's word that it
runs to its first request that passed (`steered`). Requests of the others that got no answer are `lost`.

`followed`: what was done to a container → its address or its place among the backends in the kernel's maps,
by the engine's own times of its events.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from typing import Any

from penstock.bench import compose_up
from penstock.bench.containers import (
    MOVING,
    PLAIN,
    PORT,
    ROUTED,
    SIDE,
    SIDE_ADDRESS,
    Box,
    Crowd,
    Events,
    Load,
    crowd,
    engine,
    first_answer,
    wait,
)
from penstock.bench.memory import resident
from penstock.bench.record import Bar, Result
from penstock.bench.site import allow, alone, policy, scratch
from penstock.bench.stats import summary

CONTAINERS, QUICK_CONTAINERS = 100, 20
ROUNDS, QUICK_ROUNDS = 3, 1
FOLLOWED, QUICK_FOLLOWED = 5, 2
UP_BAR, MEMORY_BAR, STEERED_BAR, FOLLOWED_BAR = 10.0, 120.0, 300.0, 100.0
STOPS = "trap 'sleep 0.5; exit 0' TERM; while :; do sleep 0.02; done"

Tell = Callable[[str], None]


def run(tell: Tell, *, quick: bool = False) -> Result:
    """Measure. Raises PenstockError."""
    containers = QUICK_CONTAINERS if quick else CONTAINERS
    with alone(), scratch() as directory, ExitStack() as stack:
        made = stack.enter_context(engine())
        with crowd(made, directory, _manifests()) as there:
            tell(f"{containers} containers")
            figures = _crowd(there, containers, tell)
            tell("what is done to a container")
            followed = _followed(there, QUICK_FOLLOWED if quick else FOLLOWED)
        tell("the image")
        ups = compose_up.measure(made, directory, QUICK_ROUNDS if quick else ROUNDS, tell)
    steered = [1000 * s for s in figures.pop("steered")]
    slowest = max(u["first_request"] for u in ups)
    delays = [ms for samples in followed.values() for ms in samples]
    return Result(
        bench="docker",
        method=f"docker-compose up to the first protected request; {containers} containers, and half as many "
        "that come and go; the engine's event to the kernel's maps",
        settings={"containers": containers, "rounds": len(ups)},
        arms={
            "up_s": summary([u["first_request"] for u in ups]),
            "steered_ms": summary(steered),
            "crowd": figures,
            **{f"followed_ms {action}": summary(samples) for action, samples in followed.items()},
        },
        bars=(
            Bar("compose up to the first protected request", slowest, UP_BAR, "s"),
            Bar(f"daemon with {containers} containers", figures["daemon_mb"], MEMORY_BAR, "MB"),
            Bar("start to steered, p99", round(summary(steered)["p99"], 1), STEERED_BAR, "ms"),
            Bar("requests of others lost", figures["lost"], 1),
            Bar("followed, longest", round(max(delays), 1), FOLLOWED_BAR, "ms"),
        ),
        raw={"up": ups, "steered_ms": steered, "followed_ms": followed},
    )


def _manifests() -> list[dict[str, Any]]:
    def service(name: str, address: str, app: str) -> dict[str, Any]:
        return {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": name},
            "spec": {"clusterIP": address, "selector": {"app": app}, "ports": [{"port": PORT}]},
        }

    route = {
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "HTTPRoute",
        "metadata": {"name": "routed"},
        "spec": {
            "parentRefs": [{"group": "", "kind": "Service", "name": "routed"}],
            "rules": [{"backendRefs": [{"name": "routed", "port": PORT}]}],
        },
    }
    read = [{"method": "GET"}]
    clients = ("client", "guest")
    rules = [allow(peer, (PORT, "TCP"), http=read) for peer in clients]
    addresses = {"routed": (ROUTED, "web"), "plain": (PLAIN, "plain"), "moving": (MOVING, "moves")}
    services = [service(name, *how) for name, how in addresses.items()]
    return [*services, route, policy("web", "web", ingress=rules)]


def _crowd(there: Crowd, containers: int, tell: Tell) -> dict[str, Any]:
    client = there.run("client", "client")
    for name in ("web", "plain"):
        there.serve(there.run(name, name))
    for number in range(containers - 3):
        there.run(f"idle-{number}", f"idle-{number % 10}")
    there.running.settle(60.0)
    first_answer(client.netns, ROUTED)
    tell("half of them come and go")
    steered: list[float] = []
    leaving: list[threading.Thread] = []
    with Load(client.netns, ROUTED) as routed, Load(client.netns, PLAIN) as plain:
        for number in range(containers // 2):
            guest = there.run(f"guest-{number}", "guest")
            steered.append(first_answer(guest.netns, ROUTED) - guest.started)
            leaving.append(threading.Thread(target=there.remove, args=(guest,)))
            leaving[-1].start()
        for thread in leaving:
            thread.join()
    return {
        "steered": steered,
        "daemon_mb": resident(there.running.pid)["rss_mb"],
        "asked": routed.seen.total() + plain.seen.total(),
        "lost": routed.lost + plain.lost,
        "seen": {"routed": dict(routed.seen), "plain": dict(plain.seen)},
    }


def _followed(there: Crowd, rounds: int) -> dict[str, list[float]]:
    """Action → milliseconds from the engine's event to the kernel's maps."""
    found: dict[str, list[float]] = {}
    with closing(Events(there.engine)) as events:
        for _ in range(rounds):
            box = there.run("moves", "moves", "sh", "-c", STOPS)
            _one_round(there, box, events, found)
            there.remove(box)
    return found


def _one_round(there: Crowd, box: Box, events: Events, found: dict[str, list[float]]) -> None:
    def do(action: str, until: Callable[[], bool], path: str, body: Any = None, event: str = "") -> None:
        # Of what was done before nothing is to be under way: each is measured by itself.
        there.running.settle()
        before = time.time()
        asked = threading.Thread(target=there.engine.request, args=("POST", path, body))
        asked.start()
        wait(action, until)
        seen = time.time()
        asked.join()
        found.setdefault(action, []).append((seen - events.of(event or action, box.number, before)) * 1000)

    own = f"/containers/{box.number}"

    def backends(count: int) -> Callable[[], bool]:
        return lambda: there.backends() == count

    wait("it is a backend", backends(1))
    do("pause", backends(0), f"{own}/pause")
    do("unpause", backends(1), f"{own}/unpause")
    side = {"Container": box.number, "EndpointConfig": {"IPAMConfig": {"IPv4Address": SIDE_ADDRESS}}}
    do("connect", lambda: bool(there.endpoint(SIDE_ADDRESS)), f"/networks/{SIDE}/connect", side)
    del side["EndpointConfig"]
    do("disconnect", lambda: not there.endpoint(SIDE_ADDRESS), f"/networks/{SIDE}/disconnect", side)
    # It goes on for half a second after its signal: nothing is sent to it any more by then.
    do("stop", backends(0), f"{own}/stop?t=3", event="kill")
    do("start", backends(1), f"{own}/start")
    before = there.endpoint(box.address)
    do(
        "restart",
        lambda: there.endpoint(box.address) not in (None, before),
        f"{own}/restart?t=0",
        event="start",
    )
    do("kill", lambda: not there.endpoint(box.address), f"{own}/kill?signal=KILL", event="die")


COLUMNS = ("DOCKER", "MEDIAN", "P90", "P99", "MAX", "SAMPLES")


def rows(data: dict[str, Any]) -> list[tuple[Any, ...]]:
    """The table: each arm with its percentiles."""
    arms = {name: arm for name, arm in data["arms"].items() if name != "crowd"}
    return [
        (name, *(arm[key] for key in ("median", "p90", "p99", "max", "samples")))
        for name, arm in arms.items()
    ]
