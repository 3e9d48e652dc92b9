/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* tcx ingress, host side of a workload's veth: everything that a workload says passes here first. */
#include "asker.h"
#include "flow.h"

SEC("tc")
int from_workload(struct __sk_buff *skb)
{
	struct way w = {.here = skb->ifindex, .hook = HOOK_FROM_WORKLOAD};
	struct config *c;
	struct packet p;
	__u32 zero = 0;
	int parsed = parse(skb, &p);

	/* Probes of a neighbour that is not this node would be routed on: no way around policy. */
	if (parsed == PARSED_LINK && !on_link(&p.t.dst) && !of_this_node(&p.t.dst))
		parsed = PARSED;
	if (parsed)
		return unparsed(&p, parsed, HOOK_FROM_WORKLOAD);
	c = bpf_map_lookup_elem(&config, &zero);
	if (!c)
		return TC_ACT_SHOT;

	/* The answer of a backend to the proxy, which borrowed the client's address. */
	if (p.t.protocol == IPPROTO_TCP && in_proxy_range(c, p.t.dport)) {
		struct endpoint *src = bpf_map_lookup_elem(&endpoints, &p.t.src);

		if (src && src->ifindex == skb->ifindex && !assign_own(skb, &p)) {
			count(PROXY_RETURN, p.length);
			return TC_ACT_OK;
		}
	}
	if (p.t.protocol == IPPROTO_UDP && in_proxy_range(c, p.t.dport) && !answers_dns(skb, &p, w.here, w.bridged)) {
		count(PROXY_RETURN, p.length);
		return TC_ACT_OK;
	}
	return ingress_hook(skb, &p, c, w, NAT_NONE);
}

char _license[] SEC("license") = "GPL";
