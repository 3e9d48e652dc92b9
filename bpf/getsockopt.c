/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * The proxy asks netfilter first for whom a connection was meant, and its own socket only if netfilter knows of none.
 * What the programs gave it came with the address that counts, as the socket has it; where a published port's DNAT was
 * before them, netfilter would name the port of the node instead, and the request would be judged for nobody.
 */
#include "maps.h"

#define SOL_IP 0
#define SOL_IPV6 41
/* linux/netfilter_ipv4.h; IP6T_SO_ORIGINAL_DST is the same. */
#define SO_ORIGINAL_DST 80

SEC("cgroup/getsockopt")
int own_destination(struct bpf_sockopt *ctx)
{
	struct netns_value *ns;
	__u64 cookie;

	if (ctx->optname != SO_ORIGINAL_DST || (ctx->level != SOL_IP && ctx->level != SOL_IPV6))
		return 1;
	if ((__u32)bpf_get_current_uid_gid() != PROXY_UID)
		return 1;
	cookie = bpf_get_netns_cookie(ctx);
	ns = bpf_map_lookup_elem(&netns, &cookie);
	return !(ns && ns->flags & NETNS_HOST);
}

char _license[] SEC("license") = "GPL";
