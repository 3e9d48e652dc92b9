/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * The verdict of one side: two LPM look-ups (this peer, any peer), the stronger wins; nothing found is a
 * denial. penstock/policy/lookup.py mirrors this and is compared with it in tests/bpf/test_policy.py.
 */
#ifndef PENSTOCK_POLICY_H
#define PENSTOCK_POLICY_H

#include "maps.h"

static __always_inline __u8 policy_verdict(__u32 subject, __u8 direction, __u32 identity, __u8 protocol, __be16 port,
					   __u32 *rule, __u8 *flags)
{
	struct policy_key key = {
		.prefixlen = POLICY_FULL_BITS,
		.subject = subject,
		.identity = identity,
		.direction = direction,
		.protocol = protocol,
		.port = port,
	};
	struct policy_value *of_peer, *of_any;

	of_peer = bpf_map_lookup_elem(&policy, &key);
	key.identity = 0;
	of_any = bpf_map_lookup_elem(&policy, &key);
	/* What either demands holds: a rule for any peer is one for this peer too. */
	if (of_peer)
		*flags |= of_peer->flags;
	if (of_any)
		*flags |= of_any->flags;
	if (of_peer && (!of_any || of_peer->verdict >= of_any->verdict)) {
		*rule = of_peer->rule;
		return of_peer->verdict;
	}
	if (of_any) {
		*rule = of_any->rule;
		return of_any->verdict;
	}
	*rule = 0;
	return VERDICT_DENY;
}

static __always_inline struct ipcache_value *identify(const union addr *addr)
{
	struct ipcache_key key = {.prefixlen = 128, .addr = *addr};

	return bpf_map_lookup_elem(&ipcache, &key);
}

/* 1 for the node's own addresses; 0 for its workloads'. */
static __always_inline int of_this_node(const union addr *addr)
{
	struct ipcache_value *who = identify(addr);

	return who && who->identity == IDENTITY_HOST;
}

static __always_inline __be16 listener_port(__u32 source_class, __u32 kind, __u32 destination)
{
	struct listener_key key = {.source_class = source_class, .kind = kind, .destination = destination};
	struct listener_value *value = bpf_map_lookup_elem(&listeners, &key);

	return value ? value->port : 0;
}

#endif
