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
	int nat = NAT_NONE, parsed = parse(skb, &p);

	if (parsed == PARSED_NOT_IP || parsed == PARSED_LINK)
		return TC_ACT_OK;
	c = bpf_map_lookup_elem(&config, &zero);
	/* What is neither for a local workload, a Service nor a Gateway is the node's own business. */
	if (!bpf_map_lookup_elem(&endpoints, &p.t.dst)) {
		if (parsed || !c)
			return TC_ACT_OK;
		nat = nat_forward(skb, &p, c, 0);
		if (nat == NAT_REFUSED)
			return reject(skb, &p, NO_BACKEND, HOOK_FROM_NETDEV);
		if (nat == NAT_NOT_OUTSIDE) {
			struct decision d = {};

			return drop(&p, &d, UNTRANSLATED_SERVICE, HOOK_FROM_NETDEV);
		}
		if (nat == NAT_NONE ? !to_gateway(&p.t) : !bpf_map_lookup_elem(&endpoints, &p.t.dst))
			return TC_ACT_OK;
	}
	if (parsed)
		return unparsed(&p, parsed, HOOK_FROM_NETDEV);
	if (!c)
		return TC_ACT_SHOT;

	/* The answer of a remote backend to the proxy, which borrowed the client's address. */
	if (p.t.protocol == IPPROTO_TCP && in_proxy_range(c, p.t.dport) && !assign_own(skb, &p)) {
		count(PROXY_RETURN, p.length);
		return TC_ACT_OK;
	}
	return ingress_hook(skb, &p, c, HOOK_FROM_NETDEV, nat);
}

char _license[] SEC("license") = "GPL";
