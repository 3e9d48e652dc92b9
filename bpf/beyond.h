/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * A client from outside asked a node without an endpoint of the Service: the packet goes on to a node that has one, as
 * it is. That node knows the Service at this one's address too, judges who really asks, and answers the client itself.
 * Each stretch costs a hop: nodes that think each of the other would send it to and fro no longer than any router.
 */
#ifndef PENSTOCK_BEYOND_H
#define PENSTOCK_BEYOND_H

#include "nat_forward.h"

/* linux/bpf.h, since 6.4: redirect_neigh looks the neighbour up by itself. */
#define FIB_LOOKUP_SKIP_NEIGH (1U << 2)
#define FAMILY_INET 2
#define FAMILY_INET6 10

/* As nat_room. */
struct beyond_room {
	struct bpf_fib_lookup way;
	struct bpf_redir_neigh next;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__type(key, __u32);
	__type(value, struct beyond_room);
	__uint(max_entries, 1);
} beyond_rooms SEC(".maps");

/* 0 if there was a hop left. RFC 791, 3.2; RFC 8200, 3. */
static __always_inline int take_hop(struct __sk_buff *skb, const struct packet *p)
{
	__u32 at = ETH_HLEN + (p->ipv6 ? __builtin_offsetof(struct ipv6hdr, hop_limit) :
					 __builtin_offsetof(struct iphdr, ttl));
	__u16 was, is;
	__u8 *hops = (__u8 *)&is;

	/* With the byte that stands beside it: checksums are over pairs. */
	if (bpf_skb_load_bytes(skb, at, &was, sizeof(was)))
		return -1;
	is = was;
	if (*hops <= 1)
		return -1;
	*hops -= 1;
	if (!p->ipv6 && bpf_l3_csum_replace(skb, ETH_HLEN + __builtin_offsetof(struct iphdr, check), was, is, 2))
		return -1;
	return bpf_skb_store_bytes(skb, at, &is, 1, 0);
}

/* After NAT_BEYOND. */
static __noinline int to_beyond(struct __sk_buff *skb, const struct packet *p, __u8 hook)
{
	__u32 zero = 0;
	struct beyond_room *b = bpf_map_lookup_elem(&beyond_rooms, &zero);
	struct decision d = {.src_identity = IDENTITY_WORLD, .verdict = VERDICT_ALLOW, .reason = FORWARDED_NODE};
	struct nat_room *r = nat_room();

	if (!b || !r)
		return TC_ACT_SHOT;
	__builtin_memset(b, 0, sizeof(*b));
	b->way.ifindex = skb->ingress_ifindex;
	if (p->ipv6) {
		b->way.family = FAMILY_INET6;
		__builtin_memcpy(b->way.ipv6_src, &p->t.src, 16);
		__builtin_memcpy(b->way.ipv6_dst, &r->value.to.addr, 16);
	} else {
		b->way.family = FAMILY_INET;
		b->way.ipv4_src = p->t.src.w[3];
		b->way.ipv4_dst = r->value.to.addr.w[3];
	}
	if (bpf_fib_lookup(skb, &b->way, sizeof(b->way), FIB_LOOKUP_SKIP_NEIGH))
		return p->icmp_error ? TC_ACT_SHOT : reject(skb, p, NO_BACKEND, hook);
	if (take_hop(skb, p))
		return TC_ACT_SHOT;
	b->next.nh_family = b->way.family;
	__builtin_memcpy(b->next.ipv6_nh, b->way.ipv6_dst, sizeof(b->next.ipv6_nh));
	count(FORWARDED_NODE, p->length);
	if (p->t.protocol != IPPROTO_TCP || begins(p))
		tell(p, &d, hook);
	return bpf_redirect_neigh(b->way.ifindex, &b->next, sizeof(b->next), 0);
}

#endif
