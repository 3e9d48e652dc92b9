"""Verdict reasons: one append-only numbered table, shared with bpf/penstock.h (enum reason).

Numbers below 32 are ways that a packet takes, from 32 on they are drops. tests/bpf/test_layout.py compares
this with the header.
"""

from __future__ import annotations

from enum import IntEnum


class Reason(IntEnum):
    """Number, and the sentence that explains it to an operator."""

    explanation: str

    def __new__(cls, number: int, explanation: str) -> Reason:
        member = int.__new__(cls, number)
        member._value_ = number
        member.explanation = explanation
        return member

    REASON_NONE = 0, "nothing was decided"
    FORWARDED_LOCAL = 1, "handed to a local workload in the kernel"
    FORWARDED_STACK = 2, "passed on by the kernel"
    REDIRECTED = 3, "steered to the proxy"
    PROXY_RETURN = 4, "a backend's answer to the proxy"
    FROM_PROXY = 5, "sent by the proxy"
    NOT_IP = 6, "not IP, or link-local housekeeping"
    TRANSLATED = 7, "a socket's Service address was translated to a backend"
    EVENT_LOST = 8, "an event that nobody was told of: too many at once"
    AUDIT_DENIED_EGRESS = 9, "a policy in audit would deny it: no egress rule of the sender allows it"
    AUDIT_DENIED_INGRESS = 10, "a policy in audit would deny it: no ingress rule of the receiver allows it"
    CONNECTION_RESUMED = (
        11,
        "judged anew in the middle: a full table had forgotten it, or it is older than the programs",
    )
    ANSWERED_RESET = 12, "who was called answered with a reset: no listener, or it gave the connection up"
    FORWARDED_NODE = 13, "sent on, as it is, to a node that has an endpoint of the Service"
    POLICY_DENIED_EGRESS = 32, "no egress rule of the sender allows it"
    POLICY_DENIED_INGRESS = 33, "no ingress rule of the receiver allows it"
    SPOOFED_SOURCE = 34, "the source address is not the sender's"
    PROXY_NOT_READY = 35, "an L7 rule or a route names it, and its listener is not active"
    PLAINTEXT_TO_STRICT = 36, "plain TCP to a workload that demands mesh TLS"
    MALFORMED = 37, "the packet's headers are broken or too short"
    UNKNOWN_PROTOCOL = 38, "not TCP, UDP, SCTP or ICMP"
    FRAGMENT_WITHOUT_FIRST = 39, "a fragment whose first part was not seen"
    UNRELATED_ICMP_ERROR = 40, "an ICMP error about no flow that is known"
    UNTRANSLATED_SERVICE = 41, "sent to a Service address that was not translated when the socket connected"
    NO_BACKEND = 42, "the Service has no endpoint"
    POLICY_CHANGED = 43, "a rule changed while the connection was open"
    NOT_FOR_THIS_PORT = 44, "a bridge sent it to every port, and this one is not its destination's"
    LINK_PROTOCOL = (
        45,
        "on a bridge: a frame that is neither IP nor ARP, or speaks as a router",
    )
    UNAUTHENTICATED = 46, "a rule demands authentication, and between nodes only mesh TLS proves who sends"
    BLOCKLISTED = 47, "the source address is on the blocklist"
    PROXY_OVERUSED = 48, "the sender asks more of the proxy than --proxy-rate grants a workload"
    RULES_CLASH = (
        49,
        "one side's rules ask for server names and the other's for requests, or a Gateway is in between",
    )

    @property
    def is_drop(self) -> bool:
        return self >= 32

    @property
    def is_audit(self) -> bool:
        return self in (Reason.AUDIT_DENIED_EGRESS, Reason.AUDIT_DENIED_INGRESS)


BY_NUMBER = {int(reason): reason for reason in Reason}
