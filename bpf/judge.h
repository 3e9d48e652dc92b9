/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * Judging a flow. judge() works on the direction in which a flow began, the same at every hook: the sender's
 * egress if the sender is local, the receiver's ingress if the receiver is local, then what mesh TLS asks.
 */
#ifndef PENSTOCK_JUDGE_H
#define PENSTOCK_JUDGE_H

#include "audit.h"
#include "conntrack.h"
#include "proxy.h"

static __always_inline void deny(struct decision *d, __u8 reason)
{
	d->verdict = VERDICT_DENY;
	d->reason = reason;
}

static __always_inline void steer_to(struct decision *d, __be16 port)
{
	d->proxy_port = port;
	if (!d->proxy_port) {
		deny(d, PROXY_NOT_READY);
		return;
	}
	d->verdict = VERDICT_REDIRECT;
	d->reason = REDIRECTED;
}

static __always_inline void steer(struct decision *d, __u32 source_class, __u32 kind, __u32 destination)
{
	steer_to(d, listener_port(source_class, kind, destination));
	d->tunnel = kind == LISTENER_TLS_TCP || kind == LISTENER_TCP_MTLS;
}

/* By the lists of server names that judge() has come to. Global, as judge(). */
__noinline int steer_by_names(struct judgement *j, __u32 source_class, __u32 kind, __u32 destination)
{
	struct policy_room *r;
	__u32 zero = 0, *lists;
	__be16 port;

	r = bpf_map_lookup_elem(&policy_rooms, &zero);
	if (!j || !r)
		return 0;
	lists = kind == LISTENER_NAMES_AUDIT ? r->viewed : r->judged;
	port = names_listener(source_class, kind, destination, lists[EGRESS], lists[INGRESS]);
	/* To judge as a policy in audit would: where no listener is ready, nobody is told. */
	if (kind != LISTENER_NAMES_AUDIT || port)
		steer_to(&j->d, port);
	j->d.watched = kind == LISTENER_NAMES_AUDIT;
	return port;
}

/* Both sides must allow: what one asks of requests and the other of server names, no connection can meet. */
static __always_inline __u8 both_sides(__u8 a, __u8 b)
{
	if (a == VERDICT_DENY || b == VERDICT_DENY)
		return VERDICT_DENY;
	if (a == VERDICT_NAMES || b == VERDICT_NAMES)
		return a == VERDICT_REDIRECT || b == VERDICT_REDIRECT ? VERDICT_NONE : VERDICT_NAMES;
	return a > b ? a : b;
}

/* Keeps the compiler from folding tests of map pointers into arithmetic that the verifier refuses. */
#define known_as_number(x) asm volatile("" : "+r"(x))

/* What a port of an identity asks of TCP between nodes; `mode` is what its other ports ask. */
__noinline int port_mode(__u32 identity, __be16 port, __u32 mode, int here)
{
	struct port_mode_key key = { .identity = identity, .port = port };
	struct port_mode_value *own = bpf_map_lookup_elem(&port_modes, &key);

	if (!own)
		return mode;
	return here ? own->here : own->toward;
}

/* `foreign`: somebody else speaks with the node's own address (masquerade, docker-proxy), and is the world. */
__noinline int judge(const struct tuple *t, __be16 policy_port, const struct config *c, struct judgement *j,
		     int foreign)
{
	struct service_key *service;
	struct policy_room *r;
	struct endpoint *src, *dst;
	__u32 source_class = IDENTITY_WORLD, rule = 0, src_subject = 0, dst_subject = 0;
	__u32 src_mesh = 0, dst_mesh = 0, dst_mode = 0, src_is_local = 0, dst_is_local = 0;
	__u8 verdict = VERDICT_ALLOW, other, flags = 0, src_audit = 0, dst_audit = 0;
	struct ipcache_value *who;

	r = bpf_map_lookup_elem(&policy_rooms, &rule);
	if (!t || !c || !j || !r)
		return -1;
	__builtin_memset(r->judged, 0, sizeof(r->judged));
	__builtin_memset(r->viewed, 0, sizeof(r->viewed));
	service = &r->service;
	__builtin_memset(service, 0, sizeof(*service));
	service->addr = t->dst;
	service->port = t->dport;
	service->protocol = t->protocol;
	src = bpf_map_lookup_elem(&endpoints, &t->src);
	dst = bpf_map_lookup_elem(&endpoints, &t->dst);
	__builtin_memset(j, 0, sizeof(*j));
	j->d.src_identity = IDENTITY_WORLD;
	j->d.dst_identity = IDENTITY_WORLD;
	if (src) {
		src_is_local = 1;
		src_subject = src->subject;
		src_audit = src->audit;
		j->src_ifindex = src->ifindex;
		j->d.src_identity = src->identity;
		j->elsewhere = src->flags & ENDPOINT_ELSEWHERE;
		source_class = src->source_class;
	} else {
		who = identify(&t->src);
		if (who && !(foreign && who->identity == IDENTITY_HOST)) {
			j->d.src_identity = who->identity;
			source_class = who->source_class;
			src_mesh = who->flags & IPCACHE_MESH;
			j->src_mesh = src_mesh;
			j->src_local_address = who->flags & IPCACHE_LOCAL;
		}
	}
	known_as_number(src_is_local);
	if (dst) {
		dst_is_local = 1;
		dst_subject = dst->subject;
		dst_audit = dst->audit;
		dst_mode = dst->mode;
		j->dst_ifindex = dst->ifindex;
		j->d.dst_identity = dst->identity;
		j->elsewhere |= dst->flags & ENDPOINT_ELSEWHERE;
	} else {
		struct service_value *s = bpf_map_lookup_elem(&services, service);

		if (s && !(s->flags & SERVICE_GATEWAY)) {
			j->d.dst_identity = 0;
			if (src_is_local && s->flags & SERVICE_HTTP)
				steer(&j->d, source_class, LISTENER_HTTP_SERVICE, 0);
			else
				deny(&j->d, UNTRANSLATED_SERVICE);
			return 0;
		}
		who = s ? 0 : identify(&t->dst);
		if (s) {
			dst_is_local = 1;
			dst_subject = INGRESS_SUBJECT;
			dst_audit = s->flags & SERVICE_AUDIT ? 1 << INGRESS : 0;
			j->d.dst_identity = IDENTITY_INGRESS;
		} else if (who) {
			j->d.dst_identity = who->identity;
			dst_mesh = who->flags & IPCACHE_MESH;
			j->dst_mesh = dst_mesh;
			dst_mode = who->mode;
			j->named = outside(who);
		}
	}
	known_as_number(dst_is_local);

	if (src_is_local) {
		verdict = policy_verdict(src_subject, EGRESS, j->d.dst_identity, t->protocol, policy_port, &j->d.rule,
					 &flags);
		if (j->named) {
			__u64 found = named_verdict(t, src_subject, j->src_ifindex, policy_port);

			verdict = with_names(verdict, found, r->server_names_of_name, r, &j->d.rule, &flags);
		}
		if (verdict == VERDICT_NAMES)
			r->judged[EGRESS] = r->server_names;
		if (verdict == VERDICT_DENY) {
			deny(&j->d, POLICY_DENIED_EGRESS);
			return 0;
		}
		if (src_audit & (1 << EGRESS) && j->named)
			r->view = named_verdict(t, src_subject | AUDIT_VIEW, j->src_ifindex, policy_port);
		if (src_audit & (1 << EGRESS))
			audit(j, t, src_subject, EGRESS, policy_port);
	}
	if (dst_is_local && !(j->d.src_identity == IDENTITY_HOST && c->flags & CONFIG_HOST_ACCESS)) {
		other = policy_verdict(dst_subject, INGRESS, j->d.src_identity, t->protocol, policy_port, &rule, &flags);
		/* The DNS proxy judges no requests but its own. */
		if (other == VERDICT_REDIRECT && flags & POLICY_DNS)
			other = VERDICT_DENY;
		if (other == VERDICT_NAMES)
			r->judged[INGRESS] = r->server_names;
		if (strength(other) >= strength(verdict) || other == VERDICT_NAMES || !src_is_local)
			j->d.rule = rule;
		verdict = both_sides(verdict, other);
		if (verdict == VERDICT_DENY) {
			deny(&j->d, POLICY_DENIED_INGRESS);
			return 0;
		}
		if (verdict == VERDICT_NONE) {
			deny(&j->d, RULES_CLASH);
			return 0;
		}
		if (dst_audit & (1 << INGRESS))
			audit(j, t, dst_subject, INGRESS, policy_port);
	}

	if (src_is_local && j->d.dst_identity == IDENTITY_DNS) {
		if (t->dport == bpf_htons(DNS_PORT) && (t->protocol == IPPROTO_UDP || t->protocol == IPPROTO_TCP))
			steer(&j->d, 0, LISTENER_DNS, 0);
		else
			deny(&j->d, UNTRANSLATED_SERVICE);
		return 0;
	}

	if (t->protocol == IPPROTO_TCP && src_is_local != dst_is_local && dst_subject != INGRESS_SUBJECT)
		dst_mode = port_mode(j->d.dst_identity, t->dport, dst_mode, dst_is_local);

	/* Within the node the kernel knows who speaks; between nodes only certificates prove it. */
	if (flags & POLICY_AUTHENTICATED && j->d.src_identity != IDENTITY_HOST && j->d.dst_identity != IDENTITY_HOST &&
	    src_is_local != dst_is_local) {
		if (t->protocol != IPPROTO_TCP || dst_mode == MESH_OFF ||
		    (src_is_local ? !dst_mesh : !src_mesh || !in_proxy_range(c, t->sport))) {
			deny(&j->d, UNAUTHENTICATED);
			return 0;
		}
		if (src_is_local)
			dst_mode = MESH_STRICT;
	}

	if (verdict == VERDICT_REDIRECT && flags & POLICY_DNS) {
		steer(&j->d, 0, LISTENER_DNS, 0);
		return 0;
	}

	if (t->protocol == IPPROTO_TCP && dst_is_local && !src_is_local) {
		if (src_mesh && dst_mode != MESH_OFF && in_proxy_range(c, t->sport)) {
			__u32 kind = verdict == VERDICT_REDIRECT ? LISTENER_TLS_HTTP : LISTENER_TLS_TCP;

			if (verdict == VERDICT_NAMES) {
				steer_by_names(j, source_class, LISTENER_TLS_NAMES, 0);
				return 0;
			}
			if (kind == LISTENER_TLS_TCP && j->audit_redirect &&
			    listener_port(source_class, LISTENER_TLS_HTTP, 0)) {
				kind = LISTENER_TLS_HTTP;
				j->d.watched = 1;
			}
			steer(&j->d, source_class, kind, 0);
			j->d.tunnel |= j->d.watched;
			return 0;
		}
		/* A Gateway of this very node is proven by the kernel: nobody else's packets bear its address here. */
		if (j->src_local_address && j->d.src_identity == IDENTITY_INGRESS)
			dst_mode = MESH_PERMISSIVE;
		if (dst_mode == MESH_STRICT && j->d.src_identity != IDENTITY_HOST) {
			deny(&j->d, PLAINTEXT_TO_STRICT);
			return 0;
		}
	}
	if (verdict == VERDICT_REDIRECT && dst_subject == INGRESS_SUBJECT) {
		struct service_value *s = bpf_map_lookup_elem(&services, service);

		steer(&j->d, source_class, LISTENER_GATEWAY, s ? s->id : 0);
		return 0;
	}
	if (verdict == VERDICT_REDIRECT) {
		steer(&j->d, source_class, LISTENER_HTTP_WORKLOAD, 0);
		return 0;
	}
	if (verdict == VERDICT_NAMES && dst_subject == INGRESS_SUBJECT) {
		deny(&j->d, RULES_CLASH);
		return 0;
	}
	if (verdict == VERDICT_NAMES) {
		/* To another mesh node goes mesh TLS around the client's own; the world is nobody's identity. */
		__u32 to = src_is_local && dst_mesh && dst_mode != MESH_OFF ? j->d.dst_identity : 0;

		steer_by_names(j, source_class, LISTENER_NAMES, j->named ? IDENTITY_WORLD : to);
		return 0;
	}
	if (t->protocol == IPPROTO_TCP && src_is_local && dst_mesh && dst_mode == MESH_STRICT) {
		steer(&j->d, source_class, LISTENER_TCP_MTLS, j->d.dst_identity);
		return 0;
	}
	if (j->audit_redirect) {
		/* To judge requests as a policy in audit would. Where no listener is ready, nobody is told. */
		struct service_value *s = 0;

		if (dst_subject == INGRESS_SUBJECT)
			s = bpf_map_lookup_elem(&services, service);
		j->d.proxy_port = listener_port(source_class, s ? LISTENER_GATEWAY : LISTENER_HTTP_WORKLOAD, s ? s->id : 0);
		if (j->d.proxy_port) {
			j->d.verdict = VERDICT_REDIRECT;
			j->d.reason = REDIRECTED;
			j->d.watched = 1;
			return 0;
		}
	}
	if ((r->viewed[EGRESS] || r->viewed[INGRESS]) && dst_subject != INGRESS_SUBJECT &&
	    steer_by_names(j, source_class, LISTENER_NAMES_AUDIT, j->named ? IDENTITY_WORLD : 0))
		return 0;
	j->d.verdict = VERDICT_ALLOW;
	j->d.reason = j->dst_ifindex ? FORWARDED_LOCAL : FORWARDED_STACK;
	return 0;
}

/* No connection begins anew for a policy in audit: what goes past its listener does so to its end. */
static __always_inline void leave_unwatched(struct decision *d, const struct packet *p)
{
	if (!d->watched || d->tunnel || begins(p))
		return;
	d->verdict = VERDICT_ALLOW;
	d->proxy_port = 0;
}

/* The port that policy judges of a flow that something answered: of ICMP the type of the question. */
static __always_inline __be16 asked_port(const struct tuple *first)
{
	if (first->protocol != IPPROTO_ICMP && first->protocol != IPPROTO_ICMPV6)
		return first->dport;
	if (first->sport != first->dport)
		return first->sport;
	return first->protocol == IPPROTO_ICMP ? bpf_htons(8) : bpf_htons(128);
}

#endif
