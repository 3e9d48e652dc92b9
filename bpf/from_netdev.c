/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* tcx ingress of the node's own devices: what other nodes and the world send to local workloads. */
#include "elsewhere.h"

SEC("tc")
int from_netdev(struct __sk_buff *skb)
{
	struct way w = {.hook = HOOK_FROM_NETDEV};

	return from_elsewhere(skb, w);
}

char _license[] SEC("license") = "GPL";
