"""Makes a lab's namespaces, links, addresses and routes. Knows nothing of state, processes or commands.

What it keeps true: a lab is closed. Its bridge stands in a namespace of its own, no link of it has an
end in the namespace it was called from, and no namespace of it has a default route but the workloads',
which ends at their node.

A workload hangs on its node as CNI's ptp plugins do it: the workload has its address with a full-length
prefix and sends everything to 169.254.1.1 (fe80::1), which nobody owns: the host side of the veth
answers for it (proxy_arp, or that link-local address), and the node has a full-length route to the veth.
"""

from __future__ import annotations

import threading

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from penstock.lab import bridged, netns, resolver
from penstock.lab.errors import LabError
from penstock.lab.links import add_address, index, inside, veth
from penstock.lab.spec import LabNode, LabSpec, LabWorkload

GATEWAY4, GATEWAY6 = "169.254.1.1", "fe80::1"
BRIDGE = "br0"
RTNH_F_ONLINK = 4
RT_SCOPE_LINK = 253

_COMMON = [
    # Addresses are usable at once: no duplicate address detection, no router discovery.
    *(
        (f"net/ipv6/conf/{which}/{key}", "0")
        for which in ("all", "default")
        for key in ("accept_dad", "accept_ra")
    ),
    *((f"net/ipv6/conf/{which}/disable_ipv6", "0") for which in ("all", "default")),
    *((f"net/ipv4/conf/{which}/rp_filter", "0") for which in ("all", "default")),
]
_NODE = [
    ("net/ipv4/ip_forward", "1"),
    ("net/ipv6/conf/all/forwarding", "1"),
    ("net/ipv6/conf/default/forwarding", "1"),
]
_UNDERLAY = [
    ("net/bridge/bridge-nf-call-iptables", "0"),
    ("net/bridge/bridge-nf-call-ip6tables", "0"),
]


def build(spec: LabSpec) -> None:
    """Make everything of `spec`; what it made stays where it fails (LabError): `netns.remove` ends all.

    In a thread of its own: pyroute2 runs an event loop inside, which a caller's running loop would forbid.
    """
    failure: list[BaseException] = []

    def work() -> None:
        try:
            _build(spec)
        except BaseException as error:  # noqa: BLE001 - carried to the caller's thread
            failure.append(error)

    thread = threading.Thread(target=work, name="lab-build")
    thread.start()
    thread.join()
    if failure:
        if isinstance(failure[0], NetlinkError | OSError):
            raise LabError(f"lab {spec.name}: {failure[0]}") from failure[0]
        raise failure[0]


def add_workload(spec: LabSpec, name: str) -> None:
    """Make the namespace and links of a workload that was taken away. Raises LabError."""
    workload = spec.workload(name)
    netns.create([workload.netns.name])
    with netns.entered(workload.netns):
        netns.write_sysctls(_COMMON)
    with inside(spec.node(workload.node).netns) as ip:
        _hang(ip, workload)


def remove_workload(spec: LabSpec, name: str) -> None:
    """End a workload: its processes, its namespace, and with it the links."""
    gone = spec.workload(name).netns.name
    netns.end_processes([gone])
    netns.remove(gone)
    resolver.remove(gone)


def _hang(ip: IPRoute, workload: LabWorkload) -> None:
    resolver.write(workload)
    if workload.links:
        bridged.workload(ip, workload)
    else:
        _workload(ip, workload)


def _build(spec: LabSpec) -> None:
    netns.create(spec.namespaces())
    # Before any link: a link takes its settings from `default` when it comes into the namespace.
    for name in spec.namespaces():
        with netns.entered(netns.path_of(name)):
            netns.write_sysctls(_COMMON)
    _underlay(spec)
    for node in spec.nodes:
        with inside(node.netns, _NODE) as ip:
            _node(ip, spec, node)
            for workload in spec.workloads:
                if workload.node == node.name:
                    _hang(ip, workload)


def _underlay(spec: LabSpec) -> None:
    with inside(spec.underlay_netns, _UNDERLAY) as ip:
        ip.link("add", ifname=BRIDGE, kind="bridge", br_stp_state=0, br_mcast_snooping=0)
        bridge = index(ip, BRIDGE)
        ip.link("set", index=bridge, state="up")
        for number, node in enumerate(spec.nodes):
            port = f"port{number}"
            veth(ip, port, node.netns)
            ip.link("set", index=index(ip, port), master=bridge, state="up")


def _node(ip: IPRoute, spec: LabSpec, node: LabNode) -> None:
    device = index(ip, "eth0")
    ip.link("set", index=device, state="up")
    for address in node.addresses:
        network = next(n for n in spec.underlay if address in n)
        add_address(ip, device, str(address), network.prefixlen)
    # Proxy ARP answers for an address that is routed elsewhere; nothing is ever sent there.
    ip.route("add", dst=f"{GATEWAY4}/32", oif=device, scope=RT_SCOPE_LINK)
    for bridge in node.bridges:
        bridged.bridge(ip, bridge)
    if spec.routes:
        for other in spec.nodes:
            for cidr in other.pod_cidrs if other is not node else ():
                for via in other.addresses:
                    if via.version == cidr.version:
                        ip.route("add", dst=str(cidr), gateway=str(via), oif=device)


def _workload(ip: IPRoute, workload: LabWorkload) -> None:
    """`ip` is in the node's namespace."""
    veth(ip, workload.device, workload.netns)
    netns.write_sysctls(
        [
            (f"net/ipv4/conf/{workload.device}/proxy_arp", "1"),
            # An answer for another's address otherwise waits up to 0.8 s, by chance.
            (f"net/ipv4/neigh/{workload.device}/proxy_delay", "0"),
        ]
    )
    host = index(ip, workload.device)
    ip.link("set", index=host, state="up")
    with inside(workload.netns) as inner:
        device = index(inner, "eth0")
        inner.link("set", index=device, state="up")
        for address in workload.addresses:
            add_address(inner, device, str(address), address.max_prefixlen)
        for version in {address.version for address in workload.addresses}:
            gateway = GATEWAY4 if version == 4 else GATEWAY6
            inner.route(
                "add",
                dst="0.0.0.0/0" if version == 4 else "::/0",
                gateway=gateway,
                oif=device,
                flags=RTNH_F_ONLINK,
            )
    add_address(ip, host, GATEWAY6, 64)
    for address in workload.addresses:
        extra = {"scope": RT_SCOPE_LINK} if address.version == 4 else {}
        ip.route("add", dst=f"{address}/{address.max_prefixlen}", oif=host, **extra)
