/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * The verdict of one side: two LPM look-ups (this peer, any peer), the stronger wins; nothing found is a
 * denial. Weakest is to allow TLS with certain names only: whoever else allows the same voids that. penstock/policy/lookup.py mirrors this and is compared with it in tests/bpf/test_policy.py.
 */
#ifndef PENSTOCK_POLICY_H
#define PENSTOCK_POLICY_H

#include "packet.h"

/* Keys, apart from the 512 bytes of stack. */
struct policy_room {
	struct name_key name;
	struct policy_key key;
	struct policy_key of_name;
	struct service_key service;
	/* What rules for names say in the audit's view. */
	__u64 view;
	struct listener_key listener;
	struct both_names both;
	/* The list of server names behind the last VERDICT_NAMES, of either question. */
	__u32 server_names;
	__u32 server_names_of_name;
	/* By enum direction: the lists that a connection is under, and those of the audit's views. */
	__u32 judged[2];
	__u32 viewed[2];
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__type(key, __u32);
	__type(value, struct policy_room);
	__uint(max_entries, 1);
} policy_rooms SEC(".maps");

static __always_inline int strength(__u8 verdict)
{
	return verdict == VERDICT_NAMES ? 0 : verdict;
}

/* Who is in either list. Where nobody wrote down what two lists make together, the first holds alone. */
static __noinline __u32 either_list(struct policy_room *r, __u32 a, __u32 b)
{
	__u32 *found;

	if (a == b)
		return a;
	r->both.a = a < b ? a : b;
	r->both.b = a < b ? b : a;
	found = bpf_map_lookup_elem(&both_names, &r->both);
	return found ? *found : a;
}

static __always_inline __u8 policy_verdict(__u32 subject, __u8 direction, __u32 identity, __u8 protocol, __be16 port,
					   __u32 *rule, __u8 *flags)
{
	struct policy_value *of_peer, *of_any;
	struct policy_room *r;
	__u32 zero = 0;

	*rule = 0;
	r = bpf_map_lookup_elem(&policy_rooms, &zero);
	if (!r)
		return VERDICT_DENY;
	r->key.prefixlen = POLICY_FULL_BITS;
	r->key.subject = subject;
	r->key.identity = identity;
	r->key.direction = direction;
	r->key.protocol = protocol;
	r->key.port = port;
	of_peer = bpf_map_lookup_elem(&policy, &r->key);
	r->key.identity = 0;
	of_any = bpf_map_lookup_elem(&policy, &r->key);
	/* What either demands holds: a rule for any peer is one for this peer too. */
	if (of_peer)
		*flags |= of_peer->flags;
	if (of_any)
		*flags |= of_any->flags;
	if (of_peer && (!of_any || strength(of_peer->verdict) >= strength(of_any->verdict))) {
		*rule = of_peer->rule;
		r->server_names = of_peer->names;
		return of_peer->verdict;
	}
	if (of_any) {
		*rule = of_any->rule;
		r->server_names = of_any->names;
		return of_any->verdict;
	}
	return VERDICT_DENY;
}

/*
 * What the rules for names (toFQDNs) say of an address that the workload behind `ifindex` learned from DNS: the
 * strongest verdict in the low byte, flags in the next, the rule in the upper half; 0 if none speaks of it.
 */
__noinline __u64 named_verdict(const struct tuple *t, __u32 subject, __u32 ifindex, __u32 port)
{
	struct policy_room *r;
	struct name_value *known;
	struct policy_value *found;
	__u32 zero = 0, verdict = VERDICT_NONE, flags = 0, rule = 0, list = 0;
	int i;

	r = bpf_map_lookup_elem(&policy_rooms, &zero);
	if (!t || !r)
		return VERDICT_NONE;
	r->name.ifindex = ifindex;
	r->name.addr = t->dst;
	known = bpf_map_lookup_elem(&names, &r->name);
	if (!known)
		return VERDICT_NONE;
	r->of_name.prefixlen = POLICY_FULL_BITS;
	r->of_name.subject = subject;
	r->of_name.direction = EGRESS;
	r->of_name.protocol = t->protocol;
	r->of_name.port = (__be16)port;
	for (i = 0; i < MAX_NAME_LISTS; i++) {
		if (i >= known->count)
			break;
		r->of_name.identity = known->lists[i];
		found = bpf_map_lookup_elem(&policy, &r->of_name);
		if (!found)
			continue;
		flags |= found->flags;
		if (verdict == VERDICT_NAMES && found->verdict == VERDICT_NAMES) {
			list = either_list(r, list, found->names);
		} else if (verdict == VERDICT_NONE || strength(found->verdict) > strength(verdict)) {
			verdict = found->verdict;
			rule = found->rule;
			list = found->names;
		}
	}
	r->server_names_of_name = list;
	return verdict | flags << 8 | (__u64)rule << 32;
}

/* 1 for addresses that are nobody's of the mesh: only those may a name open. */
static __always_inline int outside(const struct ipcache_value *who)
{
	return who->identity == IDENTITY_WORLD || (who->identity >= IDENTITY_PREFIXES && !(who->flags & IPCACHE_NODE));
}

/* The sender's word and what its rules for names say. A denial that a rule spelled out stands: it has a number. */
static __always_inline __u8 with_names(__u8 verdict, __u64 found, __u32 list, struct policy_room *r, __u32 *rule,
				       __u8 *flags)
{
	__u8 of_name = found & 0xff;

	if (!of_name || (verdict == VERDICT_DENY && *rule))
		return verdict;
	if (verdict == VERDICT_NAMES && of_name == VERDICT_NAMES) {
		*flags |= (found >> 8) & 0xff;
		r->server_names = either_list(r, r->server_names, list);
		return verdict;
	}
	if (verdict != VERDICT_DENY && strength(of_name) <= strength(verdict))
		return verdict;
	*flags |= (found >> 8) & 0xff;
	*rule = found >> 32;
	r->server_names = list;
	return of_name;
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

static __always_inline __be16 names_listener(__u32 source_class, __u32 kind, __u32 destination, __u32 outward,
					     __u32 inward)
{
	struct listener_value *value;
	struct policy_room *r;
	__u32 zero = 0;

	r = bpf_map_lookup_elem(&policy_rooms, &zero);
	if (!r)
		return 0;
	r->listener.source_class = source_class;
	r->listener.kind = kind;
	r->listener.destination = destination;
	r->listener.outward = outward;
	r->listener.inward = inward;
	value = bpf_map_lookup_elem(&listeners, &r->listener);
	return value ? value->port : 0;
}

static __always_inline __be16 listener_port(__u32 source_class, __u32 kind, __u32 destination)
{
	return names_listener(source_class, kind, destination, 0, 0);
}

#endif
