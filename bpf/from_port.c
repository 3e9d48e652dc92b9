/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * tcx ingress of a bridge's port (Docker), and of each link of a workload that has several: everything that is said
 * there passes here first. What goes to a neighbour on the same bridge never meets the node's own stack, so it is
 * judged here, frame and packet both. Ports of nobody we know are as the node's own devices are.
 */
#include "asker.h"
#include "elsewhere.h"
#include "link.h"

static __noinline int says_who_it_is(struct __sk_buff *skb, const struct port *at)
{
	__u8 mac[6];

	return !bpf_skb_load_bytes(skb, 6, mac, sizeof(mac)) && same_mac(mac, at->mac);
}

static __noinline int to_the_bridge(struct __sk_buff *skb, const struct port *at)
{
	__u8 mac[6];

	return !at->bridge || (!bpf_skb_load_bytes(skb, 0, mac, sizeof(mac)) && same_mac(mac, at->bridge_mac));
}

/* Why a frame of a workload may not pass as a frame, whatever it carries; 0 if it may. */
static __always_inline __u8 false_frame(struct __sk_buff *skb, const struct packet *p, const struct port *at,
					int parsed)
{
	if (!says_who_it_is(skb, at))
		return SPOOFED_SOURCE;
	if (parsed == PARSED_NOT_IP) {
		if (skb->protocol != bpf_htons(ETH_P_ARP) || skb->vlan_present)
			return LINK_PROTOCOL;
		return false_arp(skb, at) ? SPOOFED_SOURCE : 0;
	}
	return parsed == PARSED_LINK && false_discovery(skb, p, at) ? LINK_PROTOCOL : 0;
}

SEC("tc")
int from_port(struct __sk_buff *skb)
{
	struct port *at = port_here(skb);
	struct decision nobody = {};
	struct way w = {};
	struct config *c;
	struct packet p;
	__u32 zero = 0;
	__u8 reason;
	int nat = NAT_NONE, action, parsed = parse(skb, &p);

	/* Being attached or let go just now. */
	if (!at)
		return TC_ACT_SHOT;
	w.here = at->home;
	w.hook = at->home ? HOOK_FROM_WORKLOAD : HOOK_FROM_NETDEV;
	w.bridged = at->bridge != 0;
	if (w.here) {
		reason = false_frame(skb, &p, at, parsed);
		if (reason)
			return drop(&p, &nobody, reason, w.hook);
		/* To a neighbour it stays on the link; by way of the node it would be routed on: no way around policy. */
		if (parsed == PARSED_LINK && !on_link(&p.t.dst) && !of_this_node(&p.t.dst) && to_the_bridge(skb, at))
			parsed = PARSED;
	} else {
		if (parsed == PARSED_NOT_IP && skb->protocol == bpf_htons(ETH_P_ARP) && false_arp(skb, at))
			return drop(&p, &nobody, SPOOFED_SOURCE, w.hook);
		c = bpf_map_lookup_elem(&config, &zero);
		action = c ? to_service(skb, &p, c, parsed, w.hook, &nat) : GOES_ON;
		if (action != GOES_ON)
			return action;
		if (of_the_node(&p, parsed))
			return TC_ACT_OK;
	}
	if (parsed)
		return unparsed(&p, parsed, w.hook);
	c = bpf_map_lookup_elem(&config, &zero);
	if (!c)
		return TC_ACT_SHOT;

	/* The answer of a backend to the proxy, which borrowed the client's address. */
	if (p.t.protocol == IPPROTO_TCP && in_proxy_range(c, p.t.dport) &&
	    (!w.here || speaks_for(w.here, &p.t.src)) && !to_own(skb, &p, w)) {
		count(PROXY_RETURN, p.length);
		return TC_ACT_OK;
	}
	if (p.t.protocol == IPPROTO_UDP && in_proxy_range(c, p.t.dport) && !answers_dns(skb, &p, w.here, w.bridged)) {
		count(PROXY_RETURN, p.length);
		return TC_ACT_OK;
	}
	return ingress_hook(skb, &p, c, w, nat);
}

char _license[] SEC("license") = "GPL";
