/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * Services packet by packet: what no connect hook could translate (clients from outside, raw sockets, connections
 * older than the Service). The destination becomes a backend before anything is judged, so that policy sees who
 * really speaks to whom. The source is never changed, but for a workload that is given itself.
 */
#ifndef PENSTOCK_NAT_FORWARD_H
#define PENSTOCK_NAT_FORWARD_H

#include "nat.h"
#include "policy.h"
#include "proxy.h"
#include "reject.h"
#include "service.h"

enum nat_result {
	/* Not for a Service, or not to be translated here. */
	NAT_NONE,
	/* The packet is for a backend now. */
	NAT_DONE,
	/* A workload called itself: it is to go back where it came from. */
	NAT_SELF,
	/* There is no backend. */
	NAT_REFUSED,
	NAT_NOT_OUTSIDE,
	/* As it is, to the node of an endpoint, which translates it (beyond.h); nat_room's value.to tells which. */
	NAT_BEYOND,
};

/* As nat_room, for the first packet of a flow. */
struct nat_new_room {
	struct service_key service;
	struct choice choice;
	union addr client;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__type(key, __u32);
	__type(value, struct nat_new_room);
	__uint(max_entries, 1);
} nat_new_rooms SEC(".maps");

static __always_inline __u32 nat_hash(const struct tuple *t)
{
	return mix(t->src.d[0] ^ (t->src.d[1] * 31) ^ (t->dst.d[1] * 17) ^ ((__u64)t->sport << 32 | t->dport) ^
		   ((__u64)t->protocol << 56));
}

/* 1 if a connection that was given `backend` may go on to it. */
static __always_inline int nat_holds(struct nat_value *flow, const struct config *c)
{
	__u32 zero = 0;
	struct choice_room *r;

	if (flow->epoch == c->epoch)
		return 1;
	r = bpf_map_lookup_elem(&choice_rooms, &zero);
	if (!r || !stands(r, flow->service, &flow->to))
		return 0;
	flow->epoch = c->epoch;
	return 1;
}

/* Which set of the Service is for this client; `flow` stays with its own. */
static __always_inline int nat_choice(struct nat_new_room *n, const struct service_value *s,
				      const struct nat_value *flow, int inside)
{
	n->choice.flags = s->flags;
	n->choice.affinity = s->affinity;
	if (!inside) {
		n->choice.service = s->outside;
		n->choice.backends = s->outside_backends;
		if (s->beyond && (flow ? flow->service == s->beyond : !s->outside_backends)) {
			n->choice.service = s->beyond;
			n->choice.backends = s->beyond_backends;
		}
		return s->outside ? NAT_DONE : NAT_NOT_OUTSIDE;
	}
	if (!(s->flags & SERVICE_HTTP)) {
		n->choice.service = s->id;
		n->choice.backends = s->backends;
		return NAT_DONE;
	}
	if (!(s->flags & SERVICE_EXTERNAL))
		return NAT_NONE;
	n->choice.service = s->alias;
	n->choice.backends = 1;
	n->choice.flags = 0;
	n->choice.affinity = 0;
	return NAT_DONE;
}

/*
 * A packet of no flow that is known by its own tuple: is it for a Service? `here` is the link of the workload that
 * speaks, 0 for clients from outside.
 * NAT_DONE: its destination is a backend, in the packet and in `p`. (What is not static is verified once, by itself,
 * and not again on each way that leads to it.)
 */
__noinline int nat_forward(struct __sk_buff *skb, struct packet *p, const struct config *c, __u32 here)
{
	__u32 zero = 0, one = 1;
	struct nat_room *r = nat_room();
	struct nat_new_room *n = bpf_map_lookup_elem(&nat_new_rooms, &zero);
	struct service_value *s;
	struct nat_value *flow;
	struct endpoint *src;
	int result, self, beyond, inside = here != 0;

	if (!r || !n || !p || !c || (p->t.protocol != IPPROTO_TCP && p->t.protocol != IPPROTO_UDP))
		return NAT_NONE;
	src = bpf_map_lookup_elem(&endpoints, &p->t.src);
	/* Who borrows an address is told so further on; no flow of its owner is to be touched. */
	if (inside ? !src || src->ifindex != here : !!src)
		return NAT_NONE;
	__builtin_memset(&n->service, 0, sizeof(n->service));
	n->service.addr = p->t.dst;
	n->service.port = p->t.dport;
	n->service.protocol = p->t.protocol;
	s = bpf_map_lookup_elem(&services, &n->service);
	if (!s || s->flags & SERVICE_GATEWAY)
		return NAT_NONE;
	nat_make_key(&r->key, &p->t.src, p->t.sport, &p->t.dst, p->t.dport, p->t.protocol);
	flow = begins(p) ? NULL : bpf_map_lookup_elem(&nat, &r->key);
	result = nat_choice(n, s, flow, inside);
	if (result != NAT_DONE)
		return result;
	beyond = !inside && n->choice.service == s->beyond;
	if (flow && flow->service == n->choice.service) {
		if (nat_holds(flow, c)) {
			r->value.to = flow->to;
			goto known;
		}
		/* Its backend is gone: what it had there is not to be had elsewhere. */
		if (p->t.protocol == IPPROTO_TCP) {
			bpf_map_delete_elem(&nat, &r->key);
			return NAT_REFUSED;
		}
	}
	/* A connection of the node's own, or of the proxy's, whose port looks like one of a Service. */
	if (p->t.protocol == IPPROTO_TCP && !begins(p)) {
		int state = socket_state(skb, p, &p->t);

		if (state && state != TCP_STATE_LISTEN)
			return NAT_NONE;
	}
	n->client = p->t.src;
	if (choose(&n->choice, &n->client, nat_hash(&p->t), &r->value.to))
		return NAT_REFUSED;
	r->value.service = n->choice.service;
	r->value.epoch = c->epoch;
	r->was.addr = p->t.dst;
	r->was.port = p->t.dport;
	r->was.client = p->t.src;
	r->was.flags = 0;
	r->was.pad = 0;
	if (inside && addr_equal(&r->value.to.addr, &p->t.src)) {
		r->was.flags = NAT_HAIRPIN;
		nat_make_key(&r->back, &p->t.dst, p->t.sport, &r->value.to.addr, r->value.to.port, p->t.protocol);
	} else {
		nat_make_key(&r->back, &p->t.src, p->t.sport, &r->value.to.addr, r->value.to.port, p->t.protocol);
	}
	bpf_map_update_elem(&nat, &r->key, &r->value, BPF_ANY);
	if (beyond)
		return NAT_BEYOND;
	bpf_map_update_elem(&nat_back, &r->back, &r->was, BPF_ANY);
	if (!nat_in_use())
		bpf_map_update_elem(&nat_used, &zero, &one, BPF_ANY);
known:
	if (beyond)
		return NAT_BEYOND;
	self = inside && addr_equal(&r->value.to.addr, &p->t.src);
	/* From its own address a workload would not take it (RFC 1812, 5.3.7): it seems to come from the Service. */
	if (self && nat_rewrite(skb, p, &r->key.peer, p->t.sport, 1))
		return NAT_NONE;
	if (nat_rewrite(skb, p, &r->value.to.addr, r->value.to.port, 0))
		return NAT_NONE;
	return self ? NAT_SELF : NAT_DONE;
}

#endif
