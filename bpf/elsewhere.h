/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* What comes in where no workload of this node speaks: judged by its address, and only if it is for one of ours. */
#ifndef PENSTOCK_ELSEWHERE_H
#define PENSTOCK_ELSEWHERE_H

#include "flow.h"

static __always_inline int to_gateway(const struct tuple *t)
{
	struct service_key key = {.addr = t->dst, .port = t->dport, .protocol = t->protocol};
	struct service_value *s = bpf_map_lookup_elem(&services, &key);

	return s && s->flags & SERVICE_GATEWAY;
}

/* 1 if it is the node's own business: neither for a local workload nor for a Gateway. */
static __always_inline int of_the_node(const struct packet *p, int parsed)
{
	if (parsed == PARSED_NOT_IP || parsed == PARSED_LINK)
		return 1;
	return !bpf_map_lookup_elem(&endpoints, &p->t.dst) && (parsed || !to_gateway(&p->t));
}

static __always_inline int from_elsewhere(struct __sk_buff *skb, struct way w)
{
	struct config *c;
	struct packet p;
	__u32 zero = 0;
	int parsed = parse(skb, &p);

	if (of_the_node(&p, parsed))
		return TC_ACT_OK;
	if (parsed)
		return unparsed(&p, parsed, w.hook);
	c = bpf_map_lookup_elem(&config, &zero);
	if (!c)
		return TC_ACT_SHOT;

	/* The answer of a remote backend to the proxy, which borrowed the client's address. */
	if (p.t.protocol == IPPROTO_TCP && in_proxy_range(c, p.t.dport) && !to_own(skb, &p, w)) {
		count(PROXY_RETURN, p.length);
		return TC_ACT_OK;
	}
	return ingress_hook(skb, &p, c, w);
}

#endif
