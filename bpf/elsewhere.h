/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* What comes in where no workload of this node speaks: judged by its address, and only if it is for one of ours. */
#ifndef PENSTOCK_ELSEWHERE_H
#define PENSTOCK_ELSEWHERE_H

#include "beyond.h"
#include "flow.h"

static __always_inline int to_gateway(const struct tuple *t)
{
	struct service_key key = {.addr = t->dst, .port = t->dport, .protocol = t->protocol};
	struct service_value *s = bpf_map_lookup_elem(&services, &key);

	return s && s->flags & SERVICE_GATEWAY;
}

/* 1 if it is the node's own business: neither for a local workload nor for a Gateway. */
static __always_inline int of_the_node(const struct packet *p, int parsed)
{
	if (parsed == PARSED_NOT_IP || parsed == PARSED_LINK)
		return 1;
	return !bpf_map_lookup_elem(&endpoints, &p->t.dst) && (parsed || !to_gateway(&p->t));
}

/* What becomes of a packet that is for a Service, by a client from outside. Less than 0 where it goes on. */
#define GOES_ON -1

static __always_inline int to_service(struct __sk_buff *skb, struct packet *p, const struct config *c, int parsed,
				      __u8 hook, int *nat)
{
	struct decision d = {};

	*nat = NAT_NONE;
	if (parsed || bpf_map_lookup_elem(&endpoints, &p->t.dst))
		return GOES_ON;
	if (p->icmp_error)
		return nat_error_about_answer(skb, p) == NAT_ERROR_BEYOND ? to_beyond(skb, p, hook) : GOES_ON;
	*nat = nat_forward(skb, p, c, 0);
	if (*nat == NAT_REFUSED)
		return reject(skb, p, NO_BACKEND, hook);
	if (*nat == NAT_BEYOND)
		return to_beyond(skb, p, hook);
	if (*nat == NAT_NOT_OUTSIDE)
		return drop(p, &d, UNTRANSLATED_SERVICE, hook);
	return GOES_ON;
}

static __always_inline int from_elsewhere(struct __sk_buff *skb, struct way w)
{
	struct config *c;
	struct packet p;
	__u32 zero = 0;
	int nat, action, parsed = parse(skb, &p);

	c = bpf_map_lookup_elem(&config, &zero);
	if (!c)
		return of_the_node(&p, parsed) ? TC_ACT_OK : TC_ACT_SHOT;
	action = to_service(skb, &p, c, parsed, w.hook, &nat);
	if (action != GOES_ON)
		return action;
	if (of_the_node(&p, parsed))
		return TC_ACT_OK;
	if (parsed)
		return unparsed(&p, parsed, w.hook);

	/* The answer of a remote backend to the proxy, which borrowed the client's address. */
	if (p.t.protocol == IPPROTO_TCP && in_proxy_range(c, p.t.dport) && !to_own(skb, &p, w)) {
		count(PROXY_RETURN, p.length);
		return TC_ACT_OK;
	}
	return ingress_hook(skb, &p, c, w, nat);
}

#endif
