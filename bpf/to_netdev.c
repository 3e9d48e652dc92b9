/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * tcx egress of the node's own devices: what a backend or the proxy answers a client from outside comes from the
 * Service's address again. Nothing is judged here.
 */
#include "nat.h"

SEC("tc")
int to_netdev(struct __sk_buff *skb)
{
	struct packet p;

	if (nat_in_use() && !parse(skb, &p))
		nat_answer(skb, &p);
	return TC_ACT_OK;
}

char _license[] SEC("license") = "GPL";
