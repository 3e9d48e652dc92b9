/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * ICMP errors: they pass if they speak of something that we let through, come from who can have met it, and go to
 * who sent it. All else could end other workloads' connections.
 */
#ifndef PENSTOCK_ICMP_H
#define PENSTOCK_ICMP_H

#include "conntrack.h"
#include "events.h"
#include "policy.h"
#include "proxy.h"

/* Room for an ICMP error, apart from the 512 bytes of stack. */
struct icmp_room {
	struct tuple quoted;
	struct tuple back;
	struct ct_key key;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__type(key, __u32);
	__type(value, struct icmp_room);
	__uint(max_entries, 1);
} icmp_rooms SEC(".maps");

/* 1 if the quoted packet was sent by a socket of the proxy, under a client's address (a workload `here`: to itself). */
static __always_inline int of_proxy(struct __sk_buff *skb, const struct packet *p, const struct config *c,
				    struct icmp_room *room, __u32 here)
{
	struct endpoint *to;
	int state;

	if (room->quoted.protocol != IPPROTO_TCP || !in_proxy_range(c, room->quoted.sport))
		return 0;
	if (here) {
		to = bpf_map_lookup_elem(&endpoints, &room->quoted.dst);
		if (!to || to->ifindex != here)
			return 0;
	}
	room->back = reversed(&room->quoted);
	state = socket_state(skb, p, &room->back);
	return state && state != TCP_STATE_LISTEN;
}

/*
 * What an ICMP error may speak of: a flow that we let through, told to the side that the quoted packet came
 * from; a workload (`here`) speaks only of what was sent to itself. 0 if it is so.
 */
static __always_inline int related(struct __sk_buff *skb, const struct packet *p, const struct config *c, __u32 here)
{
	__u32 zero = 0;
	struct icmp_room *room = bpf_map_lookup_elem(&icmp_rooms, &zero);
	struct ct_value *ct;
	__u8 side;

	if (!room || parse_quoted(skb, p, &room->quoted))
		return -1;
	if (!same_addr(&room->quoted.src, &p->t.dst))
		return -1;
	/* Path MTU discovery of the proxy's own connections. */
	if (of_proxy(skb, p, c, room, here)) {
		skb->mark = (skb->mark & ~MARK_MASK) | MARK_TO_PROXY;
		return 0;
	}
	side = ct_make_key(&room->key, &room->quoted);
	ct = bpf_map_lookup_elem(&conntrack, &room->key);
	if (!ct || (here && ct->ifindex[!side] != here))
		return -1;
	if (ct->verdict == VERDICT_REDIRECT)
		skb->mark = (skb->mark & ~MARK_MASK) | MARK_TO_PROXY;
	else
		skb->mark = (skb->mark & ~MARK_MASK) | MARK_JUDGED;
	return 0;
}

/* 1 if the source is not whom the device `here` (0: one of the node's own) can speak for. */
static __always_inline int borrowed_source(const struct packet *p, __u32 here)
{
	struct endpoint *src = bpf_map_lookup_elem(&endpoints, &p->t.src);
	struct ipcache_value *who;

	if (src)
		return src->ifindex != here;
	if (here)
		return 1;
	who = identify(&p->t.src);
	return who && who->flags & IPCACHE_LOCAL;
}

__noinline int icmp_error(struct __sk_buff *skb, const struct packet *p, const struct config *c, __u32 here,
				 __u8 hook)
{
	struct decision d = {};

	if (!p || !c)
		return TC_ACT_SHOT;
	/* At to_workload the node itself may speak. */
	if (hook != HOOK_TO_WORKLOAD && borrowed_source(p, here))
		return drop(p, &d, SPOOFED_SOURCE, hook);
	if (related(skb, p, c, here))
		return drop(p, &d, UNRELATED_ICMP_ERROR, hook);
	count(FORWARDED_STACK, p->length);
	return TC_ACT_OK;
}

#endif
