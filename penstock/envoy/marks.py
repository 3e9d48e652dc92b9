"""Numbers that Envoy's sockets carry and the kernel programs recognise.

They stand in bpf/penstock.h too. All of them live in the mark bits 0xf00, so that other software on the
node may use the rest of the mark.
"""

from __future__ import annotations

MARK_MASK = 0xF00

STEERED = 0x200
"""On a packet: the local route table 2004 delivers it to the socket that the kernel program chose."""

BROUGHT = 0x700
"""The same, of a packet that netfilter has seen already (a published port's DNAT)."""

DOWNSTREAM = 0xA00
"""On the sockets between a client and Envoy: listening ones, inherited by accepted ones."""

EDGE = 0x900
"""On the sockets that Envoy takes at a Gateway's own address: not steered."""

UPSTREAM = 0xB00
"""On the sockets between Envoy and a backend, which bear the client's address."""
