/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * ICMP errors about flows that are translated packet by packet (nat.h): who is told reads of the packet that it sent.
 * Without it nobody would learn the path's MTU, or that a port is closed. An error about an answer is for the Service's
 * address, and goes to the backend that answered; one about a question speaks of the backend, and tells the client of
 * the Service. Whether it may pass at all is judged elsewhere (icmp.h). RFC 5508, 4.2.
 */
#ifndef PENSTOCK_NAT_ERROR_H
#define PENSTOCK_NAT_ERROR_H

#include "nat.h"

/* As nat_room. */
struct nat_error_room {
	struct tuple quoted;
	__be32 words[8];
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__type(key, __u32);
	__type(value, struct nat_error_room);
	__uint(max_entries, 1);
} nat_error_rooms SEC(".maps");

static __always_inline struct nat_error_room *nat_error_quoted(struct __sk_buff *skb, const struct packet *p)
{
	__u32 zero = 0;
	struct nat_error_room *e = bpf_map_lookup_elem(&nat_error_rooms, &zero);

	if (!e || !p->l4 || parse_quoted(skb, p, &e->quoted))
		return NULL;
	if (e->quoted.protocol != IPPROTO_TCP && e->quoted.protocol != IPPROTO_UDP)
		return NULL;
	return e;
}

static __always_inline void nat_error_words(struct nat_error_room *e, const union addr *was, const union addr *is)
{
	e->words[0] = was->w[0], e->words[1] = was->w[1], e->words[2] = was->w[2], e->words[3] = was->w[3];
	e->words[4] = is->w[0], e->words[5] = is->w[1], e->words[6] = is->w[2], e->words[7] = is->w[3];
}

/* Another source (`source`) or destination for the message itself. 0 on success. */
static __noinline int nat_error_outer(struct __sk_buff *skb, struct packet *p, const union addr *to, int source)
{
	__u32 zero = 0;
	struct nat_error_room *e = bpf_map_lookup_elem(&nat_error_rooms, &zero);
	union addr *addr = source ? &p->t.src : &p->t.dst;
	__u32 at;
	int err;

	if (!e)
		return -1;
	nat_error_words(e, addr, to);
	if (p->ipv6) {
		at = ETH_HLEN + (source ? __builtin_offsetof(struct ipv6hdr, saddr) :
					  __builtin_offsetof(struct ipv6hdr, daddr));
		err = bpf_l4_csum_replace(skb, p->l4 + 2, 0, bpf_csum_diff(e->words, 16, e->words + 4, 16, 0),
					  BPF_F_PSEUDO_HDR);
		if (!err)
			err = bpf_skb_store_bytes(skb, at, e->words + 4, 16, BPF_F_RECOMPUTE_CSUM);
	} else {
		at = ETH_HLEN + (source ? __builtin_offsetof(struct iphdr, saddr) :
					  __builtin_offsetof(struct iphdr, daddr));
		err = bpf_l3_csum_replace(skb, ETH_HLEN + __builtin_offsetof(struct iphdr, check), e->words[3],
					  e->words[7], 4);
		if (!err)
			err = bpf_skb_store_bytes(skb, at, e->words + 7, 4, 0);
	}
	if (!err)
		*addr = *to;
	return err;
}

/*
 * Another source or destination in the packet that is quoted. What its header's sum makes up for (IPv4) the sum of the
 * message does not see. The quoted transport's own sum stays: it is cut off as a rule, and nobody looks at it.
 */
static __noinline int nat_error_inner(struct __sk_buff *skb, const struct packet *p, const union addr *to, __be16 port,
				      int source)
{
	__u32 zero = 0;
	struct nat_error_room *e = bpf_map_lookup_elem(&nat_error_rooms, &zero);
	__u32 sum = p->l4 + 2, quoted = p->l4 + 8, at, ports;
	__be16 was;
	int err;

	if (!e)
		return -1;
	was = source ? e->quoted.sport : e->quoted.dport;
	nat_error_words(e, source ? &e->quoted.src : &e->quoted.dst, to);
	if (p->ipv6) {
		at = quoted + (source ? __builtin_offsetof(struct ipv6hdr, saddr) :
					__builtin_offsetof(struct ipv6hdr, daddr));
		ports = quoted + sizeof(struct ipv6hdr);
		err = bpf_l4_csum_replace(skb, sum, 0, bpf_csum_diff(e->words, 16, e->words + 4, 16, 0), 0);
		if (!err)
			err = bpf_skb_store_bytes(skb, at, e->words + 4, 16, 0);
	} else {
		__u8 first;

		if (bpf_skb_load_bytes(skb, quoted, &first, 1))
			return -1;
		at = quoted + (source ? __builtin_offsetof(struct iphdr, saddr) :
					__builtin_offsetof(struct iphdr, daddr));
		ports = quoted + (first & 0xf) * 4;
		err = bpf_l3_csum_replace(skb, quoted + __builtin_offsetof(struct iphdr, check), e->words[3],
					  e->words[7], 4);
		if (!err)
			err = bpf_skb_store_bytes(skb, at, e->words + 7, 4, 0);
	}
	if (err || was == port)
		return err;
	err = bpf_l4_csum_replace(skb, sum, was, port, 2);
	return err ? err : bpf_skb_store_bytes(skb, ports + (source ? 0 : 2), &port, 2, 0);
}

enum nat_error {
	NAT_ERROR_NONE,
	/* It is for the backend that answered. */
	NAT_ERROR_DONE,
	/* The answer came from another node, which is to see it as it is; nat_room's value.to tells which. */
	NAT_ERROR_BEYOND,
};

/* An error about an answer, on its way to the Service whose address that answer bore. */
__noinline int nat_error_about_answer(struct __sk_buff *skb, struct packet *p)
{
	struct nat_room *r = nat_room();
	struct nat_error_room *e;
	struct service_value *s;
	struct nat_value *flow;
	struct service_key key = {};

	if (!r || !p || !p->icmp_error)
		return NAT_ERROR_NONE;
	e = nat_error_quoted(skb, p);
	if (!e || !addr_equal(&e->quoted.src, &p->t.dst))
		return NAT_ERROR_NONE;
	nat_make_key(&r->key, &e->quoted.dst, e->quoted.dport, &e->quoted.src, e->quoted.sport, e->quoted.protocol);
	flow = bpf_map_lookup_elem(&nat, &r->key);
	if (!flow)
		return NAT_ERROR_NONE;
	r->value = *flow;
	key.addr = e->quoted.src;
	key.port = e->quoted.sport;
	key.protocol = e->quoted.protocol;
	s = bpf_map_lookup_elem(&services, &key);
	if (s && s->beyond && r->value.service == s->beyond)
		return NAT_ERROR_BEYOND;
	if (nat_error_inner(skb, p, &r->value.to.addr, r->value.to.port, 1) ||
	    nat_error_outer(skb, p, &r->value.to.addr, 0))
		return NAT_ERROR_NONE;
	return NAT_ERROR_DONE;
}

/* An error about a question, on its last stretch to the client: it asked a Service, and knows of no backend. */
__noinline int nat_error_about_question(struct __sk_buff *skb, struct packet *p)
{
	struct nat_room *r = nat_room();
	struct nat_back_value *was;
	struct nat_error_room *e;
	int itself;

	if (!r || !p || !p->icmp_error)
		return 0;
	e = nat_error_quoted(skb, p);
	if (!e || !addr_equal(&e->quoted.src, &p->t.dst))
		return 0;
	nat_make_key(&r->back, &e->quoted.src, e->quoted.sport, &e->quoted.dst, e->quoted.dport, e->quoted.protocol);
	was = bpf_map_lookup_elem(&nat_back, &r->back);
	if (!was || was->flags & NAT_HAIRPIN)
		return 0;
	r->was = *was;
	itself = addr_equal(&e->quoted.dst, &p->t.src);
	if (nat_error_inner(skb, p, &r->was.addr, r->was.port, 0))
		return 0;
	return itself ? nat_error_outer(skb, p, &r->was.addr, 1) : 0;
}

#endif
