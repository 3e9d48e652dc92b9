/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * tcx egress of the node's own devices: what a backend or the proxy answers a client from outside comes from the
 * Service's address again. Nothing is judged here.
 */
#include "nat_error.h"

SEC("tc")
int to_netdev(struct __sk_buff *skb)
{
	struct packet p;

	/* On a bridge also what goes to workloads passes here: that is to_workload's. */
	if (!nat_in_use() || parse(skb, &p) || bpf_map_lookup_elem(&endpoints, &p.t.dst))
		return TC_ACT_OK;
	if (p.icmp_error)
		nat_error_about_question(skb, &p);
	else
		nat_answer(skb, &p);
	return TC_ACT_OK;
}

char _license[] SEC("license") = "GPL";
