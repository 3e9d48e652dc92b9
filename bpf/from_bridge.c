/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * tcx ingress of a bridge that workloads are ports of: what the bridge passes up. What from_port steers to the proxy
 * is given to its socket here; what a workload said was judged at its port; all else is as on any device.
 */
#include "elsewhere.h"

static __always_inline int deliver(struct __sk_buff *skb)
{
	__be16 port = bpf_htons((__u16)skb->priority);
	struct decision d = {.proxy_port = port};
	struct packet p;
	int parsed = parse(skb, &p);

	skb->priority = 0;
	skb->mark &= ~MARK_MASK;
	if (parsed)
		return unparsed(&p, parsed, HOOK_FROM_BRIDGE);
	if (p.t.protocol == IPPROTO_UDP ? (port ? assign_datagram(skb, &p, port, 0) : assign_answer(skb, &p, 0))
					: (port ? assign_listener(skb, &p, port) : assign_own(skb, &p)))
		return drop(&p, &d, PROXY_NOT_READY, HOOK_FROM_BRIDGE);
	return TC_ACT_OK;
}

SEC("tc")
int from_bridge(struct __sk_buff *skb)
{
	struct way w = {.hook = HOOK_FROM_BRIDGE};

	switch (skb->mark & MARK_MASK) {
	case MARK_STEERED:
		return deliver(skb);
	case MARK_PROVEN:
	case MARK_JUDGED:
	case MARK_TO_PROXY:
		return TC_ACT_OK;
	}
	return from_elsewhere(skb, w);
}

char _license[] SEC("license") = "GPL";
