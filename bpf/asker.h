/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* What a workload answers to the DNS proxy: a server that is a workload of this node. */
#ifndef PENSTOCK_ASKER_H
#define PENSTOCK_ASKER_H

#include "proxy.h"

/* 0 when a datagram is the answer of the workload `here` to the DNS proxy. */
static __noinline int answers_dns(struct __sk_buff *skb, const struct packet *p, __u32 here, int bridged)
{
	struct endpoint *src = bpf_map_lookup_elem(&endpoints, &p->t.src);

	if (!src || src->ifindex != here)
		return -1;
	if (!bridged)
		return assign_answer(skb, p, 0);
	return assign_answer(skb, p, 1) ? -1 : raise(skb, 0);
}

#endif
