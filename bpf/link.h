/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * The layer below IP, where workloads share a bridge: a frame bears its sender's own hardware address, ARP and
 * neighbour discovery speak for the sender's own addresses, and nothing else but IP is spoken. Else a workload could
 * draw its neighbours' frames to itself, or speak past the policy in a protocol that nobody judges.
 */
#ifndef PENSTOCK_LINK_H
#define PENSTOCK_LINK_H

#include "events.h"
#include "port.h"

#define ND_ROUTER_ADVERTISEMENT 134
#define ND_NEIGHBOUR_ADVERTISEMENT 136
#define ND_REDIRECT 137

/* RFC 826, for Ethernet and IPv4. */
struct arp_frame {
	__be16 hardware;
	__be16 protocol;
	__u8 hardware_length;
	__u8 protocol_length;
	__be16 operation;
	__u8 sender_mac[6];
	__u8 sender[4];
	__u8 target_mac[6];
	__u8 target[4];
} __attribute__((packed));

/* 1 if the address belongs to the workload `home`; where none of ours speaks (0), if it is none of ours. */
static __always_inline int speaks_for(__u32 home, const union addr *addr)
{
	struct endpoint *owner = bpf_map_lookup_elem(&endpoints, addr);

	return owner ? owner->ifindex == home : !home;
}

/* 0 if an ARP message names its sender rightly. */
static __noinline int false_arp(struct __sk_buff *skb, const struct port *at)
{
	struct arp_frame arp;
	union addr sender = {};
	__be32 v4;

	if (bpf_skb_load_bytes(skb, ETH_HLEN, &arp, sizeof(arp)))
		return -1;
	if (arp.hardware_length != 6 || arp.protocol_length != 4 || arp.protocol != bpf_htons(ETH_P_IP))
		return -1;
	if (at->home && !same_mac(arp.sender_mac, at->mac))
		return -1;
	__builtin_memcpy(&v4, arp.sender, sizeof(v4));
	if (!v4)
		return 0;
	addr_from_v4(&sender, v4);
	return !speaks_for(at->home, &sender);
}

/* 0 if a message of neighbour discovery (RFC 4861) is one that a workload may send, about itself. */
static __noinline int false_discovery(struct __sk_buff *skb, const struct packet *p, const struct port *at)
{
	__u16 type = bpf_ntohs(p->policy_port);
	union addr target = {};

	if ((p->t.src.d[0] || p->t.src.d[1]) && !on_link(&p->t.src) && !speaks_for(at->home, &p->t.src))
		return -1;
	if (type == ND_NEIGHBOUR_ADVERTISEMENT) {
		/* No header stands between (RFC 6980): so what is read is the target. */
		__u8 next;

		if (bpf_skb_load_bytes(skb, ETH_HLEN + 6, &next, 1) || next != IPPROTO_ICMPV6)
			return -1;
		if (bpf_skb_load_bytes(skb, ETH_HLEN + sizeof(struct ipv6hdr) + 8, &target, sizeof(target)))
			return -1;
		return !on_link(&target) && !speaks_for(at->home, &target);
	}
	return at->home && (type == ND_ROUTER_ADVERTISEMENT || type == ND_REDIRECT);
}

#endif
