/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Ports of bridges: which one a packet is at, and hardware addresses. */
#ifndef PENSTOCK_PORT_H
#define PENSTOCK_PORT_H

#include "maps.h"

static __always_inline int same_mac(const __u8 *a, const __u8 *b)
{
	int i;

#pragma unroll
	for (i = 0; i < 6; i++)
		if (a[i] != b[i])
			return 0;
	return 1;
}

static __always_inline struct port *port_here(const struct __sk_buff *skb)
{
	__u32 ifindex = skb->ifindex;

	return bpf_map_lookup_elem(&ports, &ifindex);
}

#endif
