/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Counting and telling: per-reason counters for every packet, an event for every new flow and every drop. */
#ifndef PENSTOCK_EVENTS_H
#define PENSTOCK_EVENTS_H

#include "packet.h"

static __always_inline void count(__u32 reason, __u32 length)
{
	struct counter *c = bpf_map_lookup_elem(&counters, &reason);

	if (c) {
		c->packets++;
		c->bytes += length;
	}
}

/* What is known of a packet when its fate is decided. */
struct decision {
	__u32 src_identity;
	__u32 dst_identity;
	__u32 rule;
	__u8 verdict;
	__u8 reason;
	__be16 proxy_port;
	/* A listener that looks at nothing of what it carries would do. */
	__u8 tunnel;
	/* To its listener only because a policy in audit looks on. */
	__u8 watched;
};

static __always_inline int may_tell(__u64 now)
{
	__u32 zero = 0;
	struct event_budget *b = bpf_map_lookup_elem(&event_budgets, &zero);

	if (!b)
		return 0;
	if (now - b->since > EVENT_WINDOW_NS) {
		b->since = now;
		b->told = 0;
	}
	return b->told++ < EVENTS_PER_WINDOW;
}

/* What is not static is verified once, by itself, and not again on each way that leads to it: programs load faster. */
__noinline int tell(const struct packet *p, const struct decision *d, __u8 hook)
{
	__u64 now = bpf_ktime_get_ns();
	struct event *e;

	if (!p || !d)
		return 0;
	if (!may_tell(now)) {
		count(EVENT_LOST, p->length);
		return 0;
	}
	e = bpf_ringbuf_reserve(&events, sizeof(*e), 0);
	if (!e) {
		count(EVENT_LOST, p->length);
		return 0;
	}
	__builtin_memset(e, 0, sizeof(*e));
	e->time = now;
	e->src = p->t.src;
	e->dst = p->t.dst;
	e->sport = p->t.sport;
	e->dport = p->t.dport;
	e->protocol = p->t.protocol;
	e->verdict = d->verdict;
	e->reason = d->reason;
	e->tcp_flags = p->tcp_flags;
	e->src_identity = d->src_identity;
	e->dst_identity = d->dst_identity;
	e->rule = d->rule;
	e->length = p->length;
	e->proxy_port = d->proxy_port;
	e->hook = hook;
	bpf_ringbuf_submit(e, 0);
	return 0;
}

static __always_inline int drop(const struct packet *p, struct decision *d, __u8 reason, __u8 hook)
{
	d->verdict = VERDICT_DENY;
	d->reason = reason;
	count(reason, p->length);
	tell(p, d, hook);
	return TC_ACT_SHOT;
}

/* What parse() says besides PARSED: pass link housekeeping, drop what cannot be judged. */
static __always_inline int unparsed(const struct packet *p, int parsed, __u8 hook)
{
	struct decision d = {};

	switch (parsed) {
	case PARSED_NOT_IP:
	case PARSED_LINK:
		count(NOT_IP, p->length);
		return TC_ACT_OK;
	case PARSED_NO_FIRST_FRAGMENT:
		return drop(p, &d, FRAGMENT_WITHOUT_FIRST, hook);
	case PARSED_UNKNOWN_PROTOCOL:
		return drop(p, &d, UNKNOWN_PROTOCOL, hook);
	}
	return drop(p, &d, MALFORMED, hook);
}

#endif
