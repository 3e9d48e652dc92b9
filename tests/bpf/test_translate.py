"""The decision of the connect hooks: whose sockets are translated, to which backend."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from bpf_kernel import Kernel
from packets import TCP, UDP
from small_node import A, B, up

from penstock.plan import ServiceEntry, ServiceKey
from penstock.policy.labels import HOST
from penstock.redirect import layout
from penstock.world import Address

NO_BACKEND, LEFT_ALONE, TRANSLATED = 0, 1, 2
WORKLOAD, NODE, STRANGER = 0x1111111111, 0x22, 0x33
FIRST = (ip_address("10.1.0.2"), 8080)
SECOND = (ip_address("10.2.0.1"), 8081)
THIRD = (ip_address("fd01::2"), 8082)


def _translate(
    kernel: Kernel, vip: Address, port: int, *, cookie: int = WORKLOAD, random: int = 0, protocol: int = TCP
) -> tuple[int, tuple[Address, int] | None]:
    """What translate() says, and the backend that it gave."""
    service = layout.service_key(ServiceKey(vip, port, protocol))
    call = bytes(16) + random.to_bytes(4, "little") + bytes(4) + cookie.to_bytes(8, "little") + service
    result, after, _ = kernel.call("call_translate", call + bytes(20))
    to = after[len(call) :]
    if not any(to):
        return result, None
    return result, (layout.address_of(to[:16]), int.from_bytes(to[16:18], "big"))


VIP, VIP6 = ip_address("10.96.0.1"), ip_address("fd00:10:96::1")
EMPTY, ROUTED = ip_address("10.96.0.2"), ip_address("10.96.0.3")


@pytest.fixture(autouse=True)
def services(kernel: Kernel) -> None:
    up(
        kernel,
        netns={WORKLOAD: A, NODE: HOST},
        services={
            ServiceKey(VIP, 80, TCP): ServiceEntry(1, "default/b:80/4", (FIRST, SECOND)),
            ServiceKey(VIP6, 80, TCP): ServiceEntry(2, "default/b:80/6", (THIRD,)),
            ServiceKey(EMPTY, 80, TCP): ServiceEntry(3, "default/c:80/4", ()),
            ServiceKey(ROUTED, 80, TCP): ServiceEntry(4, "default/d:80/4", (FIRST,), http=True),
        },
    )


def test_each_backend_has_its_turn(kernel: Kernel) -> None:
    assert _translate(kernel, VIP, 80, random=0) == (TRANSLATED, FIRST)
    assert _translate(kernel, VIP, 80, random=1) == (TRANSLATED, SECOND)
    assert _translate(kernel, VIP, 80, random=0xFFFFFFFF) == (TRANSLATED, SECOND)
    assert _translate(kernel, VIP6, 80, random=5) == (TRANSLATED, THIRD)


def test_what_is_no_service_is_left_alone(kernel: Kernel) -> None:
    assert _translate(kernel, VIP, 81) == (LEFT_ALONE, None)
    assert _translate(kernel, VIP, 80, protocol=UDP) == (LEFT_ALONE, None)
    assert _translate(kernel, FIRST[0], 80) == (LEFT_ALONE, None)


def test_other_processes_of_the_machine_are_left_alone(kernel: Kernel) -> None:
    assert _translate(kernel, VIP, 80, cookie=STRANGER) == (LEFT_ALONE, None)
    assert _translate(kernel, EMPTY, 80, cookie=STRANGER) == (LEFT_ALONE, None)


def test_a_service_without_endpoints_refuses(kernel: Kernel) -> None:
    assert _translate(kernel, EMPTY, 80) == (NO_BACKEND, None)


def test_a_routed_service_keeps_its_address_for_workloads_only(kernel: Kernel) -> None:
    assert _translate(kernel, ROUTED, 80) == (LEFT_ALONE, None)
    assert _translate(kernel, ROUTED, 80, cookie=NODE) == (TRANSLATED, FIRST)


def test_a_backend_that_goes_is_not_chosen(kernel: Kernel) -> None:
    up(
        kernel,
        netns={WORKLOAD: B},
        services={ServiceKey(VIP, 80, TCP): ServiceEntry(1, "default/b:80/4", (SECOND,))},
    )
    assert {_translate(kernel, VIP, 80, random=r) for r in range(3)} == {(TRANSLATED, SECOND)}
