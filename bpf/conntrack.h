/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * One LRU entry per flow, found from both directions. It caches a verdict and says who began; it is
 * never a right of its own: when the epoch moves on, the flow is judged anew in its first direction.
 */
#ifndef PENSTOCK_CONNTRACK_H
#define PENSTOCK_CONNTRACK_H

#include "packet.h"

/* Idle time after which the answering side may no longer speak (TCP: the LRU alone). */
#define UDP_IDLE_NS (180ULL * 1000000000ULL)
#define OTHER_IDLE_NS (60ULL * 1000000000ULL)
/* `seen` is written only this often, so that busy flows do not fight over a cache line. */
#define SEEN_STEP_NS (1ULL * 1000000000ULL)

static __always_inline int same_addr(const union addr *a, const union addr *b)
{
	return a->d[0] == b->d[0] && a->d[1] == b->d[1];
}

/* 1 if (src, sport) comes after (dst, dport) in the order of the key. */
static __always_inline int sender_is_b(const struct tuple *t)
{
	if (t->src.d[0] != t->dst.d[0])
		return t->src.d[0] > t->dst.d[0];
	if (t->src.d[1] != t->dst.d[1])
		return t->src.d[1] > t->dst.d[1];
	return t->sport > t->dport;
}

static __always_inline __u8 ct_make_key(struct ct_key *key, const struct tuple *t)
{
	__u8 side = sender_is_b(t);

	__builtin_memset(key, 0, sizeof(*key));
	key->protocol = t->protocol;
	if (side) {
		key->a = t->dst;
		key->b = t->src;
		key->port_a = t->dport;
		key->port_b = t->sport;
	} else {
		key->a = t->src;
		key->b = t->dst;
		key->port_a = t->sport;
		key->port_b = t->dport;
	}
	return side;
}

static __always_inline int ct_idle(const struct ct_value *ct, __u8 protocol, __u64 now)
{
	if (protocol == IPPROTO_TCP)
		return 0;
	return now - ct->seen > (protocol == IPPROTO_UDP ? UDP_IDLE_NS : OTHER_IDLE_NS);
}

static __always_inline void ct_touch(struct ct_value *ct, __u64 now)
{
	if (now - ct->seen > SEEN_STEP_NS)
		ct->seen = now;
}

/* A TCP SYN begins a connection, whatever was known of the tuple before. */
static __always_inline int begins(const struct packet *p)
{
	return p->t.protocol == IPPROTO_TCP && (p->tcp_flags & (TCP_SYN | TCP_ACK)) == TCP_SYN;
}

/* 1 if an ICMP message is a question (or has no answer), 0 if it is an answer. */
static __always_inline int asks(const struct packet *p)
{
	if (p->t.sport != p->t.dport)
		return p->t.dport == ICMP_NO_TYPE;
	return p->policy_port == bpf_htons(8) || p->policy_port == bpf_htons(128);
}

/*
 * 1 if the packet is part of the flow. In ICMP who began it asks and the other side answers: a question of the other
 * side, with the same identifier, is none of its packets.
 */
static __always_inline int continues(const struct ct_value *ct, const struct packet *p, __u8 side, __u64 now)
{
	if (begins(p) || ct_idle(ct, p->t.protocol, now))
		return 0;
	if (p->t.protocol != IPPROTO_ICMP && p->t.protocol != IPPROTO_ICMPV6)
		return 1;
	return asks(p) == (ct->initiator == side);
}

static __always_inline struct tuple reversed(const struct tuple *t)
{
	struct tuple r = {.src = t->dst, .dst = t->src, .sport = t->dport, .dport = t->sport, .protocol = t->protocol};

	return r;
}

#endif
