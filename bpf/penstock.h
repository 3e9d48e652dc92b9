/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * What the kernel side and the Python side must agree on: numbers, flags, and the layout of every map.
 * penstock/redirect/layout.py holds the same; tests/bpf/test_layout.py compares them with this file's BTF.
 */
#ifndef PENSTOCK_H
#define PENSTOCK_H

#include <linux/bpf.h>
#include <linux/types.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

/* skb->mark, nibble 0xf00. TO_PROXY is what `ip rule` sends to the local table. */
#define MARK_MASK 0xf00
#define MARK_TO_PROXY 0x200
#define MARK_JUDGED 0x400
/* On its way up a bridge, to be given to the listener whose port is skb->priority (0: the proxy's own socket). */
#define MARK_STEERED 0x300
/* Its sender is whom its source address says: from_workload or from_port has seen it. */
#define MARK_PROVEN 0x600
/* On sockets of the node that speak for others (docker-proxy): not the node's own word. */
#define MARK_FOR_OTHERS 0xc00
/* Brought to a workload's port by somebody's rule (DNAT), and taken from there to the bridge's ingress; the listener's
 * port stands above, in the upper half. And the same on its way to the proxy's socket: netfilter knows it already. */
#define MARK_BROUGHT 0x500
#define MARK_BROUGHT_TO_PROXY 0x700
#define MARK_PROXY_DOWNSTREAM 0xa00
#define MARK_PROXY_UPSTREAM 0xb00
/* What the proxy takes at a Gateway's own address: like MARK_PROXY_DOWNSTREAM, but not steered. */
#define MARK_PROXY_EDGE 0x900

/* Reserved identities, with Cilium's meaning. */
#define IDENTITY_HOST 1
#define IDENTITY_WORLD 2
#define IDENTITY_INGRESS 8
/* The node's own DNS, with the number and labels of Cilium's well-known identity kube-dns. */
#define IDENTITY_DNS 102
/* From here on: networks that policies name. */
#define IDENTITY_PREFIXES (1 << 24)
#define DNS_PORT 53
/* Names the policy entries of Gateways (penstock/policy/identities.py). */
#define INGRESS_SUBJECT (IDENTITY_INGRESS * 256)

/* The number under which `backends` tells where the proxy's datagrams leave from; the slot is the family, 4 or 6. */
#define PROXY_SOURCES 0xffffffff
/* penstock/envoy/process.py */
#define PROXY_UID 64055
/* Who seems to call a workload that is given itself by the proxy: 169.254.80.101, fd50:656e:7374:6f63:6b::1. */
#define ITSELF4 0xa9fe5065
#define ITSELF6 {0xfd50656e, 0x73746f63, 0x006b0000, 1}

/* Values are shared with penstock.plan.Verdict: the stronger wins (policy.h). */
enum verdict {
	VERDICT_NONE = 0,
	VERDICT_ALLOW = 1,
	VERDICT_REDIRECT = 2,
	VERDICT_DENY = 3,
	/* Allowed is TLS whose SNI is in a list. */
	VERDICT_NAMES = 4,
};

/* penstock.routing.model.ListenerKind */
enum listener_kind {
	LISTENER_HTTP_SERVICE = 1,
	LISTENER_HTTP_WORKLOAD = 2,
	LISTENER_TLS_HTTP = 3,
	LISTENER_TLS_TCP = 4,
	LISTENER_TCP_MTLS = 5,
	LISTENER_GATEWAY = 6,
	LISTENER_DNS = 7,
	LISTENER_NAMES = 8,
	LISTENER_TLS_NAMES = 9,
	LISTENER_NAMES_AUDIT = 10,
};

/* penstock.plan.MeshMode */
enum mesh_mode {
	MESH_OFF = 0,
	MESH_PERMISSIVE = 1,
	MESH_STRICT = 2,
};

enum direction {
	INGRESS = 0,
	EGRESS = 1,
};

/* Append only: numbers are for ever. penstock/observe/reasons.py holds the same with a sentence for each. */
enum reason {
	REASON_NONE = 0,
	FORWARDED_LOCAL = 1,
	FORWARDED_STACK = 2,
	REDIRECTED = 3,
	PROXY_RETURN = 4,
	FROM_PROXY = 5,
	NOT_IP = 6,
	TRANSLATED = 7,
	EVENT_LOST = 8,
	AUDIT_DENIED_EGRESS = 9,
	AUDIT_DENIED_INGRESS = 10,
	CONNECTION_RESUMED = 11,
	ANSWERED_RESET = 12,
	FORWARDED_NODE = 13,
	POLICY_DENIED_EGRESS = 32,
	POLICY_DENIED_INGRESS = 33,
	SPOOFED_SOURCE = 34,
	PROXY_NOT_READY = 35,
	PLAINTEXT_TO_STRICT = 36,
	MALFORMED = 37,
	UNKNOWN_PROTOCOL = 38,
	FRAGMENT_WITHOUT_FIRST = 39,
	UNRELATED_ICMP_ERROR = 40,
	UNTRANSLATED_SERVICE = 41,
	NO_BACKEND = 42,
	POLICY_CHANGED = 43,
	NOT_FOR_THIS_PORT = 44,
	LINK_PROTOCOL = 45,
	UNAUTHENTICATED = 46,
	BLOCKLISTED = 47,
	PROXY_OVERUSED = 48,
	RULES_CLASH = 49,
	REASON_MAX = 64,
};

/* IPv4 addresses are kept as IPv4-mapped IPv6 (RFC 4291, 2.5.5.2): one code path, one map. */
union addr {
	__u32 w[4];
	__u64 d[2];
	/* Keys of LPM tries have their data right after the 32-bit length. */
} __attribute__((packed, aligned(4)));

/* A local workload, by its address. */
struct endpoint {
	__u32 ifindex;
	__u32 identity;
	__u32 subject;
	__u32 source_class;
	__u8 mode;
	__u8 flags;
	/* Bits of enum direction: where policies in audit have a view of their own. */
	__u8 audit;
	__u8 pad[1];
};

/* The address is on another link of the workload than `ifindex`: the short cut does not lead there. */
#define ENDPOINT_ELSEWHERE 1

/*
 * A port of a bridge, or one of several links of a workload, by the host side's index. `home` is the ifindex that
 * stands for the workload in `endpoints` (0: no workload of ours), `mac` the workload's own on this link.
 */
struct port {
	__u32 home;
	__u32 bridge;
	__u32 subject;
	__u8 mac[6];
	__u8 bridge_mac[6];
	__u8 flags;
	__u8 pad[3];
};

/* Frames between two ports of the bridge need not pass the bridge: nobody's firewall asked to see them. */
#define PORT_DIRECT4 1
#define PORT_DIRECT6 2

/* Who an address is. LPM. */
struct ipcache_key {
	__u32 prefixlen;
	union addr addr;
};

#define IPCACHE_MESH 1
#define IPCACHE_LOCAL 2
/* Another node that has a number of its own. */
#define IPCACHE_NODE 4

struct ipcache_value {
	__u32 identity;
	__u32 source_class;
	__u8 flags;
	__u8 mode;
	__u8 pad[2];
};

/* LPM: what is wild stands last. identity 0 is "any peer"; two look-ups, the better verdict wins. */
struct policy_key {
	__u32 prefixlen;
	__u32 subject;
	__u32 identity;
	__u8 direction;
	__u8 protocol;
	__be16 port;
};
#define POLICY_FIXED_BITS (32 + 32 + 8)
#define POLICY_FULL_BITS (POLICY_FIXED_BITS + 8 + 16)

/* In a subject: its entries as they would be if the policies in audit were enforced. */
#define AUDIT_VIEW 0x80000000

#define POLICY_AUTHENTICATED 1
/* What it steers is DNS. */
#define POLICY_DNS 2

struct policy_value {
	__u8 verdict;
	__u8 flags;
	__u8 pad[2];
	/* The entry's number, by which the daemon finds the rules that it came from. */
	__u32 rule;
	/* Of VERDICT_NAMES: the number of the list (penstock/policy/server_names.py). */
	__u32 names;
};

/* The list that two lists of server names make together; a is the smaller number. */
struct both_names {
	__u32 a;
	__u32 b;
};

/*
 * An address that a workload (by the ifindex that stands for it) learned from DNS, and the lists of names in policies
 * (toFQDNs) that the name it asked for is in. Written by the DNS proxy before the workload gets the answer.
 */
struct name_key {
	__u32 ifindex;
	union addr addr;
};

#define MAX_NAME_LISTS 15

struct name_value {
	__u32 count;
	__u32 lists[MAX_NAME_LISTS];
};

/* How a port of an identity wants TCP from other nodes, where that is not what its other ports say. */
struct port_mode_key {
	__u32 identity;
	__be16 port;
	__u8 pad[2];
};

/* enum mesh_mode: what the receiver's node asks for, and how its senders must speak. */
struct port_mode_value {
	__u8 here;
	__u8 toward;
	__u8 pad[2];
};

struct listener_key {
	__u32 source_class;
	__u32 kind;
	__u32 destination;
	/* Lists of server names: what the sender's rules and what the receiver's rules say; 0 where they say nothing. */
	__u32 outward;
	__u32 inward;
};

struct listener_value {
	__be16 port;
	__u8 pad[2];
};

struct service_key {
	union addr addr;
	__be16 port;
	__u8 protocol;
	__u8 pad;
};

#define SERVICE_HTTP 1
/* The proxy listens there itself, for a Gateway: judged as ingress, neither translated nor steered. */
#define SERVICE_GATEWAY 2
/* The address is not the Service's own: a node's (NodePort), a load balancer's, an external one. */
#define SERVICE_EXTERNAL 4
#define SERVICE_MAGLEV 8
/* Of a Gateway: policies in audit have a view of their own of who comes to it. */
#define SERVICE_AUDIT 16

/* Sets of backends by number: for the node and its workloads, for clients from outside (0: it is not served to them),
 * and, while a route applies to an external address, the Service's own address for workloads. `beyond` are those of other
 * nodes, which clients from outside are sent on to as they are while there is none here (0: they are not). */
struct service_value {
	__u32 id;
	__u32 backends;
	__u32 flags;
	/* Seconds that a client stays with its backend; 0: no session affinity. */
	__u32 affinity;
	__u32 outside;
	__u32 outside_backends;
	__u32 alias;
	__u32 beyond;
	__u32 beyond_backends;
};

struct backend_key {
	__u32 service;
	__u32 slot;
};

struct backend_value {
	union addr addr;
	__be16 port;
	__u8 pad[2];
};

/* Maglev's table of a set: hash modulo `size`, a prime, gives a slot. */
#define MAGLEV_SLOTS 16382

struct maglev_value {
	__u32 size;
	__u16 slot[MAGLEV_SLOTS];
};

/* Who stands behind a set. Connections live as long as their backend is here; new ones get the ready. */
struct standing_key {
	__u32 service;
	union addr addr;
	__be16 port;
	__u8 pad[2];
};

#define STANDING_READY 1
#define STANDING_ENDING 2

/* The backend that a client of a set was given last. Of a socket the client is its network namespace. */
struct affinity_key {
	__u32 service;
	union addr client;
};

struct affinity_value {
	__u64 seen;
	struct backend_value to;
	__u8 pad[4];
};

/* A flow that is translated packet by packet: which backend, and back, which Service address. */
struct nat_key {
	union addr client;
	union addr peer;
	__be16 client_port;
	__be16 peer_port;
	__u8 protocol;
	__u8 pad[3];
};

struct nat_value {
	struct backend_value to;
	__u32 service;
	__u32 epoch;
};

#define NAT_HAIRPIN 1

struct nat_back_value {
	union addr addr;
	__be16 port;
	__u8 flags;
	__u8 pad;
	/* Of a hairpin: who called itself. */
	union addr client;
};

/* Which socket spoke to which backend instead of which service: for getpeername and recvmsg. */
struct translated_key {
	__u64 cookie;
	union addr addr;
	__be16 port;
	__u8 pad[6];
};

struct translated_value {
	union addr addr;
	__be16 port;
	__u8 pad[2];
};

/* Both directions of a flow find the same entry: a is the smaller (address, port). */
struct ct_key {
	union addr a;
	union addr b;
	__be16 port_a;
	__be16 port_b;
	__u8 protocol;
	__u8 pad[3];
};

/*
 * A verdict, good as long as `epoch` is the present one. `ifindex` is per side (0: a): where that side's
 * packets come from, and where packets to it go (0: not a local workload).
 */
struct ct_value {
	__u64 seen;
	/* CLOCK_TAI in ns: when it began, as far as is known. */
	__u64 born;
	__u32 epoch;
	__u32 ifindex[2];
	__u8 initiator : 1;
	/* Past the stack and the bridge, straight into the workload's namespace. */
	__u8 direct : 1;
	/* Begun by a process of the node. */
	__u8 of_node : 1;
	/* Its packets are translated: answers get the Service's address back. */
	__u8 nat : 1;
	/* A FIN or RST was seen. */
	__u8 ending : 1;
	/* Its listener looks at nothing of what it carries. */
	__u8 tunnel : 1;
	__u8 verdict;
	__be16 proxy_port;
};

#define MAX_SERVER_NAME 256

/*
 * A connection whose server name the proxy has looked at, by ct_key. It need not begin anew at another listener, if that
 * is the one told by `goes_on`: the name is in its lists (penstock/redirect/looked_at.py).
 */
struct looked_at {
	/* The time of day in ns at which the proxy took it. */
	__u64 since;
	struct listener_key came_by;
	struct listener_key goes_on;
	char server_name[MAX_SERVER_NAME];
};

/* What is blocked at XDP, by source (ipcache_key). `until` is CLOCK_BOOTTIME in ns, 0 for good; `bits` the key's. */
struct block_value {
	__u64 until;
	__u64 packets;
	__u64 bytes;
	__u32 bits;
	__u32 pad;
};

/* The ports of a datagram whose first fragment was seen; of ICMP the identifier (both ports) and the type. */
struct fragment_key {
	union addr src;
	union addr dst;
	__u32 id;
	__u32 protocol;
};

struct fragment_value {
	__be16 sport;
	__be16 dport;
};

struct counter {
	__u64 packets;
	__u64 bytes;
};

struct config {
	__u32 epoch;
	/* Host byte order, inclusive. */
	__u16 proxy_source_min;
	__u16 proxy_source_max;
	__u32 flags;
	/* ns between packets by which one workload may ask something of the proxy; 0: as it likes (pace.h). */
	__u32 proxy_gap;
};

/* The node's own processes reach local workloads whatever the policy says. */
#define CONFIG_HOST_ACCESS 1

#define NETNS_HOST 1

struct netns_value {
	__u32 identity;
	__u32 flags;
};

struct event {
	__u64 time;
	union addr src;
	union addr dst;
	__be16 sport;
	__be16 dport;
	__u8 protocol;
	__u8 verdict;
	__u8 reason;
	__u8 tcp_flags;
	__u32 src_identity;
	__u32 dst_identity;
	__u32 rule;
	__u32 length;
	__be16 proxy_port;
	__u8 hook;
	__u8 pad[5];
};

/* Events are for people: a flood may not buy the daemon's time (12 us each). Per CPU. */
#define EVENT_WINDOW_NS (100ULL * 1000000ULL)
#define EVENTS_PER_WINDOW 100

struct event_budget {
	__u64 since;
	__u64 told;
};

enum hook {
	HOOK_FROM_WORKLOAD = 1,
	HOOK_TO_WORKLOAD = 2,
	HOOK_FROM_NETDEV = 3,
	HOOK_FROM_BRIDGE = 4,
};

#endif
