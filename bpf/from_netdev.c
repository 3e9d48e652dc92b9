/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* tcx ingress of the node's own devices: what other nodes and the world send to local workloads. */
#include "flow.h"

static __always_inline int to_gateway(const struct tuple *t)
{
	struct service_key key = {.addr = t->dst, .port = t->dport, .protocol = t->protocol};
	struct service_value *s = bpf_map_lookup_elem(&services, &key);

	return s && s->flags & SERVICE_GATEWAY;
}

SEC("tc")
int from_netdev(struct __sk_buff *skb)
{
	struct config *c;
	struct packet p;
	__u32 zero = 0;
	int parsed = parse(skb, &p);

	if (parsed == PARSED_NOT_IP || parsed == PARSED_LINK)
		return TC_ACT_OK;
	/* What is neither for a local workload nor for a Gateway is the node's own business. */
	if (!bpf_map_lookup_elem(&endpoints, &p.t.dst) && (parsed || !to_gateway(&p.t)))
		return TC_ACT_OK;
	if (parsed)
		return unparsed(&p, parsed, HOOK_FROM_NETDEV);
	c = bpf_map_lookup_elem(&config, &zero);
	if (!c)
		return TC_ACT_SHOT;

	/* The answer of a remote backend to the proxy, which borrowed the client's address. */
	if (p.t.protocol == IPPROTO_TCP && in_proxy_range(c, p.t.dport) && !assign_own(skb, &p)) {
		count(PROXY_RETURN, p.length);
		return TC_ACT_OK;
	}
	return ingress_hook(skb, &p, c, HOOK_FROM_NETDEV);
}

char _license[] SEC("license") = "GPL";
