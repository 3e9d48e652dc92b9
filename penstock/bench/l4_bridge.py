"""`penstock bench l4-bridge`: the same as `l4` for two neighbours on a bridge, as Docker makes them.

netfilter is not asked to see frames (bridge-nf-call-iptables is 0): with the programs they go past the
bridge.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from penstock import lab
from penstock.bench import l4
from penstock.bench.record import Result
from penstock.bench.site import Site
from penstock.lab import netns

COLUMNS, rows = l4.COLUMNS, l4.rows


def run(tell: Callable[[str], None], *, quick: bool = False, **how: Any) -> Result:
    """Measure. Raises PenstockError."""
    return l4.run(tell, quick=quick, bridged=True, prepare=_no_netfilter, **how)


def _no_netfilter(place: Site) -> None:
    for node in place.spec.nodes:
        with lab.entered(node.netns):
            netns.write_sysctls(
                [(f"net/bridge/bridge-nf-call-{which}", "0") for which in ("iptables", "ip6tables")]
            )
