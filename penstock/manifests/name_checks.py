"""toFQDNs and rules.dns: what their types cannot say.

Source: Cilium 1.20, pkg/policy/api (FQDNSelector, PortRuleDNS).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from penstock.manifests.problem import Finding, Path

if TYPE_CHECKING:
    from penstock.manifests.peers import RulePeers
    from penstock.manifests.policy_kinds import FQDNSelector, PortRule

MAX_LENGTH = 255
_NAME = re.compile(r"[-a-zA-Z0-9_.]+")
_PATTERN = re.compile(r"[-a-zA-Z0-9_.*]+")


def selectors(listed: Sequence[FQDNSelector], path: Path) -> Iterator[Finding]:
    for i, each in enumerate(listed):
        here = (*path, i)
        if bool(each.match_name) == bool(each.match_pattern):
            yield Finding(here, "needs either matchName or matchPattern")
        elif each.match_name:
            yield from _word(each.match_name, _NAME, (*here, "matchName"), "write matchPattern for patterns")
        else:
            yield from _word(each.match_pattern, _PATTERN, (*here, "matchPattern"), "* stands for characters")


def _word(word: str, allowed: re.Pattern[str], path: Path, hint: str) -> Iterator[Finding]:
    if len(word) > MAX_LENGTH:
        yield Finding(path, f"has {len(word)} characters, a name has {MAX_LENGTH} at most")
    elif not allowed.fullmatch(word):
        yield Finding(path, f'"{word}" is no name: letters, digits, hyphens, underscores and dots', hint)
    elif ".." in word or (word.startswith(".") and word != "."):
        yield Finding(path, f'"{word}" has an empty label')


def server_names(ports: PortRule, path: Path) -> Iterator[Finding]:
    """serverNames of one entry of toPorts."""
    here = (*path, "serverNames")
    if ports.rules is not None and (ports.rules.http or ports.rules.dns):
        what = "http" if ports.rules.http else "dns"
        message = f"cannot stand beside rules.{what}: what is inside TLS is not seen here"
        yield Finding(here, message, "make two entries of it, with ports of their own")
    if not ports.ports:
        yield Finding(here, "needs ports: an L7 rule stands on numbered or named ports")
    for i, port in enumerate(ports.ports):
        if port.protocol in ("UDP", "SCTP"):
            yield Finding((*path, "ports", i, "protocol"), f"serverNames needs TCP, not {port.protocol}")
        if str(port.port) == "0":
            yield Finding((*path, "ports", i, "port"), "serverNames needs a port other than 0")
    for i, word in enumerate(ports.server_names or ()):
        yield from _word(word, _PATTERN, (*here, i), "* stands for characters of a label, **. for labels")
        if "**" in word.removeprefix("**."):
            yield Finding((*here, i), f'"{word}": ** can only stand at the beginning, as "**."')


def dns(ports: PortRule, path: Path, peers: RulePeers) -> Iterator[Finding]:
    """rules.dns of one entry of toPorts."""
    assert ports.rules is not None
    here = (*path, "rules", "dns")
    if peers.way == "from":
        yield Finding(here, "cannot stand in an ingress rule: names are judged where they are asked for")
    if peers.fqdns is not None:
        yield Finding(here, "cannot stand in a rule with toFQDNs", "make two rules of it")
    if not ports.ports:
        yield Finding(here, "needs ports: an L7 rule stands on numbered or named ports")
    for i, port in enumerate(ports.ports):
        if port.protocol == "SCTP":
            yield Finding((*path, "ports", i, "protocol"), "rules.dns needs UDP or TCP, not SCTP")
        if str(port.port) == "0":
            yield Finding((*path, "ports", i, "port"), "rules.dns needs a port other than 0")
    yield from selectors(ports.rules.dns, here)
