/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * XDP on the node's own devices, while anything is blocked: what comes from a blocked address ends before the stack
 * has spent anything on it. An entry that is over blocks nothing, whether or not a daemon is there to remove it.
 */
#include "packet.h"

#define MAX_VLAN_TAGS 2
/* Entries that are over may hide shorter ones that are not: so many of them are looked past. */
#define MAX_PAST 4

struct vlan_tag {
	__be16 id;
	__be16 next;
};

static __always_inline void count_blocked(__u32 length)
{
	__u32 reason = BLOCKLISTED;
	struct counter *c = bpf_map_lookup_elem(&counters, &reason);

	if (c) {
		c->packets++;
		c->bytes += length;
	}
}

/* 0 with the source address, -1 for what is not IP. */
static __always_inline int source(struct xdp_md *ctx, union addr *src)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct ethhdr *eth = data;
	void *next = eth + 1;
	__be16 protocol;
	int i;

	if (next > end)
		return -1;
	protocol = eth->h_proto;
#pragma unroll
	for (i = 0; i < MAX_VLAN_TAGS; i++) {
		struct vlan_tag *tag = next;

		if (protocol != bpf_htons(ETH_P_8021Q) && protocol != bpf_htons(ETH_P_8021AD))
			break;
		next = tag + 1;
		if (next > end)
			return -1;
		protocol = tag->next;
	}
	if (protocol == bpf_htons(ETH_P_IP)) {
		struct iphdr *ip = next;

		if ((void *)(ip + 1) > end)
			return -1;
		addr_from_v4(src, ip->saddr);
		return 0;
	}
	if (protocol == bpf_htons(ETH_P_IPV6)) {
		struct ipv6hdr *ip = next;

		if ((void *)(ip + 1) > end)
			return -1;
		addr_from_v6(src, &ip->saddr);
		return 0;
	}
	return -1;
}

SEC("xdp")
int block_xdp(struct xdp_md *ctx)
{
	__u32 length = (__u32)(ctx->data_end - ctx->data);
	struct ipcache_key key = {.prefixlen = 128};
	struct block_value *found;
	int i;

	if (source(ctx, &key.addr))
		return XDP_PASS;
#pragma unroll
	for (i = 0; i < MAX_PAST; i++) {
		found = bpf_map_lookup_elem(&blocklist, &key);
		if (!found)
			return XDP_PASS;
		/* ::/0 means IPv6: no IPv4 address is in it. */
		if (found->bits < 96 && key.addr.d[0] == 0 && key.addr.w[2] == bpf_htonl(0xffff))
			return XDP_PASS;
		if (!found->until || bpf_ktime_get_boot_ns() < found->until) {
			__sync_fetch_and_add(&found->packets, 1);
			__sync_fetch_and_add(&found->bytes, length);
			count_blocked(length);
			return XDP_DROP;
		}
		if (!found->bits)
			return XDP_PASS;
		key.prefixlen = found->bits - 1;
	}
	return XDP_PASS;
}

char _license[] SEC("license") = "GPL";
