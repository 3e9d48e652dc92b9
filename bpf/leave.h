/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * From a bridge to a workload of another node, past this namespace's stack. The engine that made the bridge has rules
 * for what leaves it for elsewhere: it would hide the sender behind the node's address, by which the other node knows
 * the node and not the workload, and closes internal networks. Between nodes of the mesh policies are the isolation.
 */
#ifndef PENSTOCK_LEAVE_H
#define PENSTOCK_LEAVE_H

#include "packet.h"
#include "port.h"

#define IPV4_TTL (ETH_HLEN + 8)
#define IPV4_CHECK (ETH_HLEN + 10)
#define IPV6_HOP_LIMIT (ETH_HLEN + 7)

static __always_inline int one_hop_less(struct __sk_buff *skb, const struct packet *p)
{
	__be16 before, after;
	__u8 two[2], hops;

	if (p->ipv6) {
		if (bpf_skb_load_bytes(skb, IPV6_HOP_LIMIT, &hops, 1) || hops < 2)
			return -1;
		hops--;
		return bpf_skb_store_bytes(skb, IPV6_HOP_LIMIT, &hops, 1, 0);
	}
	/* With its neighbour in the header, since the checksum is of words. */
	if (bpf_skb_load_bytes(skb, IPV4_TTL, two, sizeof(two)) || two[0] < 2)
		return -1;
	__builtin_memcpy(&before, two, sizeof(before));
	two[0]--;
	__builtin_memcpy(&after, two, sizeof(after));
	if (bpf_l3_csum_replace(skb, IPV4_CHECK, before, after, sizeof(after)))
		return -1;
	return bpf_skb_store_bytes(skb, IPV4_TTL, &two[0], 1, 0);
}

/* What to do with the packet; less than 0 where the stack must see to it (no route, too long for the way). */
static __noinline int leave(struct __sk_buff *skb, const struct packet *p)
{
	struct bpf_fib_lookup way = {};
	struct port *at = port_here(skb);
	long found;

	if (!at || !at->bridge)
		return -1;
	way.ifindex = at->bridge;
	way.l4_protocol = p->t.protocol;
	if (p->ipv6) {
		way.family = 10;
		way.ipv6_src[0] = p->t.src.w[0];
		way.ipv6_src[1] = p->t.src.w[1];
		way.ipv6_src[2] = p->t.src.w[2];
		way.ipv6_src[3] = p->t.src.w[3];
		way.ipv6_dst[0] = p->t.dst.w[0];
		way.ipv6_dst[1] = p->t.dst.w[1];
		way.ipv6_dst[2] = p->t.dst.w[2];
		way.ipv6_dst[3] = p->t.dst.w[3];
	} else {
		way.family = 2;
		way.ipv4_src = p->t.src.w[3];
		way.ipv4_dst = p->t.dst.w[3];
	}
	found = bpf_fib_lookup(skb, &way, sizeof(way), 0);
	if (found != BPF_FIB_LKUP_RET_SUCCESS && found != BPF_FIB_LKUP_RET_NO_NEIGH)
		return -1;
	if (way.ifindex == at->bridge || one_hop_less(skb, p))
		return -1;
	return bpf_redirect_neigh(way.ifindex, 0, 0, 0);
}

#endif
