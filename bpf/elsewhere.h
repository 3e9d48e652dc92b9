/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* What comes in where no workload of this node speaks: judged by its address, and only if it is for one of ours. */
#ifndef PENSTOCK_ELSEWHERE_H
#define PENSTOCK_ELSEWHERE_H

#include "flow.h"

static __always_inline int from_elsewhere(struct __sk_buff *skb, struct way w)
{
	struct config *c;
	struct packet p;
	__u32 zero = 0;
	int parsed = parse(skb, &p);

	if (parsed == PARSED_NOT_IP || parsed == PARSED_LINK)
		return TC_ACT_OK;
	/* What is not for a local workload is the node's own business. */
	if (!bpf_map_lookup_elem(&endpoints, &p.t.dst))
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
