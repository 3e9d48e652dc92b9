"""The syntax of the words in a manifest: names, label keys and values, addresses, regular expressions.

Each function says what is wrong with a word, or '' if nothing is. Sources: Kubernetes' API machinery
(RFC 1123, RFC 1035 and RFC 6335 names, qualified names), RE2's syntax, RFC 9110 for HTTP field names.
"""

from __future__ import annotations

import re
from functools import lru_cache
from ipaddress import IPv6Network, ip_address, ip_network

import re2

_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
_LABEL_1035 = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_QUALIFIED = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?")
_PORT_NAME = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?")
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_DNS = "lower case letters, digits and '-', beginning and ending with a letter or digit"

LABEL_SOURCES = ("k8s", "any", "reserved")
"""Prefixes of label keys in Cilium's selectors."""


def dns_label(word: str) -> str:
    """RFC 1123 label."""
    if len(word) > 63:
        return "is longer than 63 characters"
    return "" if _LABEL.fullmatch(word) else f"must be {_DNS}"


def service_name(word: str) -> str:
    """RFC 1035 label."""
    if len(word) > 63:
        return "is longer than 63 characters"
    return (
        ""
        if _LABEL_1035.fullmatch(word)
        else "must be lower case letters, digits and '-', beginning with a letter"
    )


def dns_subdomain(word: str) -> str:
    """RFC 1123 labels joined by dots."""
    if len(word) > 253:
        return "is longer than 253 characters"
    return (
        "" if all(map(_LABEL.fullmatch, word.split("."))) else f"must be {_DNS}, with '.' between such parts"
    )


def hostname(word: str) -> str:
    """A DNS name, or ``*.`` and a DNS name; no address and no port."""
    try:
        ip_address(word)
    except ValueError:
        return dns_subdomain(word.removeprefix("*."))
    return "must be a name, not an address"


def label_key(word: str) -> str:
    """A qualified name: ``[DNS subdomain/]name``."""
    prefix, slash, name = word.rpartition("/")
    if slash and (wrong := dns_subdomain(prefix)):
        return f"the part before '/' {wrong}"
    if len(name) > 63:
        return "is longer than 63 characters"
    return (
        ""
        if _QUALIFIED.fullmatch(name)
        else "must be letters, digits, '-', '_' and '.', beginning and ending with a letter or digit"
    )


def selector_key(word: str) -> str:
    """A label key, with Cilium's source before it or not."""
    source, colon, key = word.partition(":")
    if not colon:
        return label_key(word)
    if source not in LABEL_SOURCES:
        return f'the source "{source}" is not one of {", ".join(LABEL_SOURCES)}'
    return label_key(key)


def label_value(word: str) -> str:
    if len(word) > 63:
        return "is longer than 63 characters"
    if not word or _QUALIFIED.fullmatch(word):
        return ""
    return f'"{word}" must be letters, digits, "-", "_" and ".", beginning and ending with a letter or digit'


def port_number(number: int) -> str:
    return "" if 1 <= number <= 65535 else f"{number} is not a port (1 to 65535)"


def port_name(word: str) -> str:
    """RFC 6335 service name (IANA_SVC_NAME): at most 15 characters with a letter among them."""
    if len(word) > 15:
        return "is longer than 15 characters"
    good = _PORT_NAME.fullmatch(word) and "--" not in word and not word.isdecimal()
    return "" if good else "must be lower case letters, digits and single '-', with at least one letter"


def address(word: str, version: int | None = None) -> str:
    try:
        parsed = ip_address(word)
    except ValueError:
        return f'"{word}" is not an IP address'
    if "%" in word:
        return f'"{word}" has a zone'
    return "" if version in (None, parsed.version) else f'"{word}" is not an IPv{version} address'


def host_address(word: str, version: int | None = None) -> str:
    """An address that a host may have and others may reach (the API's own rule for endpoints).

    A loopback endpoint would lead into the proxy's own node.
    """
    if wrong := address(word, version):
        return wrong
    parsed = ip_address(word)
    for kind in ("loopback", "link_local", "multicast", "unspecified"):
        if getattr(parsed, f"is_{kind}"):
            return f'"{word}" is a {kind.replace("_", "-")} address'
    return ""


def network(word: str) -> str:
    try:
        ip_network(word, strict=True)
    except ValueError:
        return f'"{word}" is not a network (address/length, without host bits)'
    return ""


def prefix(word: str, *, length: bool = True) -> str:
    """Addresses that a policy names: a network, with host bits or without; `length`: "/length" must be there.

    IPv4-mapped IPv6 addresses are IPv4 to the kernel's tables and no packet carries them (RFC 4291, 2.5.5.2).
    """
    try:
        parsed = ip_network(word, strict=False)
    except ValueError:
        return f'"{word}" is not a network (address/length)'
    if "%" in word:
        return f'"{word}" has a zone'
    if isinstance(parsed, IPv6Network) and parsed.network_address.ipv4_mapped and parsed.prefixlen >= 96:
        return f'"{word}" is IPv4 written as IPv6'
    if length and "/" not in word:
        return f'"{word}" has no length'
    return "" if "/" not in word or word.rpartition("/")[2].isdecimal() else f'"{word}" has no plain length'


def field_name(word: str) -> str:
    """The name of an HTTP header field."""
    return "" if _TOKEN.fullmatch(word) else f'"{word}" is not the name of a header'


def field_value(word: str) -> str:
    return "is not the value of a header" if re.search(r"[\x00-\x08\x0a-\x1f\x7f]", word) else ""


_RE2 = re2.Options()
_RE2.log_errors = False
MAX_REGEX = 1024
"""Characters. Gateway API's limit for a path; Cilium gives none."""


@lru_cache(maxsize=4096)
def regex(pattern: str) -> str:
    """RE2, as Envoy runs it."""
    if len(pattern) > MAX_REGEX:
        return f"is longer than {MAX_REGEX} characters"
    try:
        re2.compile(pattern, _RE2)
    except re2.error as e:
        why = e.args[0].decode(errors="replace") if e.args and isinstance(e.args[0], bytes) else str(e)
        return f'"{pattern}" is not a regular expression (RE2): {why}'
    return ""


_PATH = re.compile(r"/(?:[A-Za-z0-9\-._~!$&'()*+,;=:@/]|%[0-9a-fA-F]{2})*")


def url_path(value: str) -> str:
    """A path as Envoy compares it: normalised, nothing left to escape (RFC 3986, 3.3)."""
    if not value.startswith("/"):
        return 'does not begin with "/"'
    if len(value) > 1024:
        return "is longer than 1024 characters"
    if found := [part for part in ("//", "/./", "/../", "%2f", "%2F", "#") if part in value]:
        return f'holds "{found[0]}", which no normalised path does'
    if value.endswith(("/.", "/..")):
        return "ends in a dot segment, which no normalised path does"
    if not _PATH.fullmatch(value):
        return "holds characters that a path must escape"
    return ""
