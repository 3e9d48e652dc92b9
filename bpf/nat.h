/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * Flows to Services that are translated packet by packet (nat_forward.h): the rewriting, and the way back, where
 * answers get the Service's address again on their last stretch.
 */
#ifndef PENSTOCK_NAT_H
#define PENSTOCK_NAT_H

#include "conntrack.h"

/* Keys and values, apart from the 512 bytes of stack. */
struct nat_room {
	struct nat_key key;
	struct nat_key back;
	struct nat_value value;
	struct nat_back_value was;
	__be32 words[8];
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__type(key, __u32);
	__type(value, struct nat_room);
	__uint(max_entries, 1);
} nat_rooms SEC(".maps");

static __always_inline struct nat_room *nat_room(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&nat_rooms, &zero);
}

/* Whether any flow was ever translated: else nobody needs to look. */
static __always_inline int nat_in_use(void)
{
	__u32 zero = 0;
	__u32 *used = bpf_map_lookup_elem(&nat_used, &zero);

	return used && *used;
}

static __always_inline void nat_make_key(struct nat_key *key, const union addr *client, __be16 client_port,
					 const union addr *peer, __be16 peer_port, __u8 protocol)
{
	key->client = *client;
	key->peer = *peer;
	key->client_port = client_port;
	key->peer_port = peer_port;
	key->protocol = protocol;
	key->pad[0] = key->pad[1] = key->pad[2] = 0;
}

/*
 * Another source (`source`) or destination for the packet, checksums included (RFC 1624); `p` follows. In a fragment
 * without ports only the address changes. 0 on success.
 */
static __noinline int nat_rewrite(struct __sk_buff *skb, struct packet *p, const union addr *to, __be16 port,
				  int source)
{
	union addr *addr = source ? &p->t.src : &p->t.dst;
	__be16 *old_port = source ? &p->t.sport : &p->t.dport;
	__u32 at, sum, flags = BPF_F_PSEUDO_HDR;
	__u32 l4 = p->l4;
	int err = 0;

	struct nat_room *r = nat_room();

	if (!r || (p->t.protocol != IPPROTO_TCP && p->t.protocol != IPPROTO_UDP))
		return -1;
	sum = l4 + (p->t.protocol == IPPROTO_TCP ? 16 : 6);
	/* RFC 768: a UDP checksum of 0 is none. */
	if (p->t.protocol == IPPROTO_UDP)
		flags |= BPF_F_MARK_MANGLED_0;
	if (p->ipv6) {
		__be32 *was = r->words, *is = r->words + 4;

		was[0] = addr->w[0], was[1] = addr->w[1], was[2] = addr->w[2], was[3] = addr->w[3];
		is[0] = to->w[0], is[1] = to->w[1], is[2] = to->w[2], is[3] = to->w[3];
		at = ETH_HLEN + (source ? __builtin_offsetof(struct ipv6hdr, saddr) :
					  __builtin_offsetof(struct ipv6hdr, daddr));
		if (l4)
			err = bpf_l4_csum_replace(skb, sum, 0, bpf_csum_diff(was, 16, is, 16, 0), flags);
		/* With it the sum of the whole packet, where a device gave one, is right on every kernel. */
		if (!err)
			err = bpf_skb_store_bytes(skb, at, is, 16, BPF_F_RECOMPUTE_CSUM);
	} else {
		__be32 was = addr->w[3], is = to->w[3];

		at = ETH_HLEN + (source ? __builtin_offsetof(struct iphdr, saddr) :
					  __builtin_offsetof(struct iphdr, daddr));
		if (l4)
			err = bpf_l4_csum_replace(skb, sum, was, is, flags | 4);
		if (!err)
			err = bpf_l3_csum_replace(skb, ETH_HLEN + __builtin_offsetof(struct iphdr, check), was, is, 4);
		if (!err)
			err = bpf_skb_store_bytes(skb, at, &is, 4, 0);
	}
	if (!err && l4 && *old_port != port) {
		flags &= ~BPF_F_PSEUDO_HDR;
		err = bpf_l4_csum_replace(skb, sum, *old_port, port, flags | 2);
		if (!err)
			err = bpf_skb_store_bytes(skb, l4 + (source ? 0 : 2), &port, 2, 0);
	}
	if (err)
		return err;
	*addr = *to;
	*old_port = port;
	if (!source)
		p->policy_port = port;
	return 0;
}

/* A reset ends what it answers: so that a flood towards a closed port takes no room from those who are served. */
static __always_inline void nat_end(struct nat_room *r, const struct packet *p)
{
	nat_make_key(&r->key, r->was.flags & NAT_HAIRPIN ? &r->was.client : &p->t.dst, p->t.dport, &r->was.addr,
		     r->was.port, p->t.protocol);
	bpf_map_delete_elem(&nat, &r->key);
	bpf_map_delete_elem(&nat_back, &r->back);
}

/* An answer of a backend: it comes from the Service again. 1 if it did. */
__noinline int nat_answer(struct __sk_buff *skb, struct packet *p)
{
	struct nat_room *r = nat_room();
	struct nat_back_value *was;

	if (!r || !p)
		return 0;
	nat_make_key(&r->back, &p->t.dst, p->t.dport, &p->t.src, p->t.sport, p->t.protocol);
	was = bpf_map_lookup_elem(&nat_back, &r->back);
	if (!was)
		return 0;
	r->was = *was;
	if (p->tcp_flags & TCP_RST)
		nat_end(r, p);
	if (nat_rewrite(skb, p, &r->was.addr, r->was.port, 1))
		return 0;
	if (r->was.flags & NAT_HAIRPIN)
		nat_rewrite(skb, p, &r->was.client, p->t.dport, 0);
	return 1;
}

/* 1 if this would be answered by `nat_answer`. */
static __always_inline int nat_answers(const struct packet *p)
{
	struct nat_room *r = nat_room();

	if (!r)
		return 0;
	nat_make_key(&r->back, &p->t.dst, p->t.dport, &p->t.src, p->t.sport, p->t.protocol);
	return bpf_map_lookup_elem(&nat_back, &r->back) != NULL;
}

/* 1 if this is what a workload answers itself, by way of a Service. */
static __always_inline int nat_answers_itself(struct __sk_buff *skb, struct packet *p)
{
	struct nat_room *r = nat_room();
	struct nat_back_value *was;

	if (!r || !nat_in_use())
		return 0;
	nat_make_key(&r->back, &p->t.dst, p->t.dport, &p->t.src, p->t.sport, p->t.protocol);
	was = bpf_map_lookup_elem(&nat_back, &r->back);
	return was && was->flags & NAT_HAIRPIN && addr_equal(&was->client, &p->t.src) && nat_answer(skb, p);
}

/* A flow without translation has this tuple now: answers to it are not to be given a Service's address. */
static __always_inline void nat_forget(const struct tuple *t)
{
	struct nat_room *r = nat_room();

	if (!r || !nat_in_use())
		return;
	nat_make_key(&r->back, &t->src, t->sport, &t->dst, t->dport, t->protocol);
	bpf_map_delete_elem(&nat_back, &r->back);
}

#endif
