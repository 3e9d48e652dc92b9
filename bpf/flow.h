/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * Judging a flow. judge() works on the direction in which a flow began, the same at every hook: the sender's
 * egress if the sender is local, the receiver's ingress if the receiver is local, then what mesh TLS asks.
 */
#ifndef PENSTOCK_FLOW_H
#define PENSTOCK_FLOW_H

#include "conntrack.h"
#include "events.h"
#include "policy.h"
#include "proxy.h"

/* net.ipv4.ip_local_port_range begins here by default. */
#define FIRST_EPHEMERAL_PORT 32768

struct judgement {
	struct decision d;
	__u32 src_ifindex;
	__u32 dst_ifindex;
	__u8 src_local_address;
};

static __always_inline void deny(struct decision *d, __u8 reason)
{
	d->verdict = VERDICT_DENY;
	d->reason = reason;
}

static __always_inline void steer(struct decision *d, __u32 source_class, __u32 kind, __u32 destination)
{
	d->proxy_port = listener_port(source_class, kind, destination);
	if (!d->proxy_port) {
		deny(d, PROXY_NOT_READY);
		return;
	}
	d->verdict = VERDICT_REDIRECT;
	d->reason = REDIRECTED;
}

/* Keeps the compiler from folding tests of map pointers into arithmetic that the verifier refuses. */
#define known_as_number(x) asm volatile("" : "+r"(x))

static __noinline void judge(const struct tuple *t, __be16 policy_port, const struct config *c, struct judgement *j)
{
	struct service_key service = {.addr = t->dst, .port = t->dport, .protocol = t->protocol};
	struct endpoint *src = bpf_map_lookup_elem(&endpoints, &t->src);
	struct endpoint *dst = bpf_map_lookup_elem(&endpoints, &t->dst);
	__u32 source_class = IDENTITY_WORLD, rule = 0, src_subject = 0, dst_subject = 0;
	__u32 src_mesh = 0, dst_mesh = 0, dst_mode = 0, src_is_local = 0, dst_is_local = 0;
	__u8 verdict = VERDICT_ALLOW, other;
	struct ipcache_value *who;

	__builtin_memset(j, 0, sizeof(*j));
	j->d.src_identity = IDENTITY_WORLD;
	j->d.dst_identity = IDENTITY_WORLD;
	if (src) {
		src_is_local = 1;
		src_subject = src->subject;
		j->src_ifindex = src->ifindex;
		j->d.src_identity = src->identity;
		source_class = src->source_class;
	} else {
		who = identify(&t->src);
		if (who) {
			j->d.src_identity = who->identity;
			source_class = who->source_class;
			src_mesh = who->flags & IPCACHE_MESH;
			j->src_local_address = who->flags & IPCACHE_LOCAL;
		}
	}
	known_as_number(src_is_local);
	if (dst) {
		dst_is_local = 1;
		dst_subject = dst->subject;
		dst_mode = dst->mode;
		j->dst_ifindex = dst->ifindex;
		j->d.dst_identity = dst->identity;
	} else {
		struct service_value *s = bpf_map_lookup_elem(&services, &service);

		if (s) {
			j->d.dst_identity = 0;
			if (src_is_local && s->flags & SERVICE_HTTP)
				steer(&j->d, source_class, LISTENER_HTTP_SERVICE, 0);
			else
				deny(&j->d, UNTRANSLATED_SERVICE);
			return;
		}
		who = identify(&t->dst);
		if (who) {
			j->d.dst_identity = who->identity;
			dst_mesh = who->flags & IPCACHE_MESH;
			dst_mode = who->mode;
		}
	}
	known_as_number(dst_is_local);

	if (src_is_local) {
		verdict = policy_verdict(src_subject, EGRESS, j->d.dst_identity, t->protocol, policy_port, &j->d.rule);
		if (verdict == VERDICT_DENY) {
			deny(&j->d, POLICY_DENIED_EGRESS);
			return;
		}
	}
	if (dst_is_local && !(j->d.src_identity == IDENTITY_HOST && c->flags & CONFIG_HOST_ACCESS)) {
		other = policy_verdict(dst_subject, INGRESS, j->d.src_identity, t->protocol, policy_port, &rule);
		if (other >= verdict || !src_is_local) {
			verdict = other;
			j->d.rule = rule;
		}
		if (verdict == VERDICT_DENY) {
			deny(&j->d, POLICY_DENIED_INGRESS);
			return;
		}
	}

	if (t->protocol == IPPROTO_TCP && dst_is_local && !src_is_local) {
		if (src_mesh && dst_mode != MESH_OFF && in_proxy_range(c, t->sport)) {
			steer(&j->d, source_class, verdict == VERDICT_REDIRECT ? LISTENER_TLS_HTTP : LISTENER_TLS_TCP, 0);
			return;
		}
		if (dst_mode == MESH_STRICT && j->d.src_identity != IDENTITY_HOST) {
			deny(&j->d, PLAINTEXT_TO_STRICT);
			return;
		}
	}
	if (verdict == VERDICT_REDIRECT) {
		steer(&j->d, source_class, LISTENER_HTTP_WORKLOAD, 0);
		return;
	}
	if (t->protocol == IPPROTO_TCP && src_is_local && dst_mesh && dst_mode == MESH_STRICT) {
		steer(&j->d, source_class, LISTENER_TCP_MTLS, j->d.dst_identity);
		return;
	}
	j->d.verdict = VERDICT_ALLOW;
	j->d.reason = j->dst_ifindex ? FORWARDED_LOCAL : FORWARDED_STACK;
}

/* The port that policy judges of a flow that something answered: only an echo has answers in ICMP. */
static __always_inline __be16 asked_port(const struct tuple *first)
{
	if (first->protocol == IPPROTO_ICMP)
		return bpf_htons(8);
	if (first->protocol == IPPROTO_ICMPV6)
		return bpf_htons(128);
	return first->dport;
}

/* Room for an ICMP error, apart from the 512 bytes of stack. */
struct icmp_room {
	struct tuple quoted;
	struct tuple back;
	struct ct_key key;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__type(key, __u32);
	__type(value, struct icmp_room);
	__uint(max_entries, 1);
} icmp_rooms SEC(".maps");

/* 1 if the quoted packet was sent by a socket of the proxy, under a client's address (a workload `here`: to itself). */
static __always_inline int of_proxy(struct __sk_buff *skb, const struct packet *p, const struct config *c,
				    struct icmp_room *room, __u32 here)
{
	struct endpoint *to;
	int state;

	if (room->quoted.protocol != IPPROTO_TCP || !in_proxy_range(c, room->quoted.sport))
		return 0;
	if (here) {
		to = bpf_map_lookup_elem(&endpoints, &room->quoted.dst);
		if (!to || to->ifindex != here)
			return 0;
	}
	room->back = reversed(&room->quoted);
	state = socket_state(skb, p, &room->back);
	return state && state != TCP_STATE_LISTEN;
}

/*
 * What an ICMP error may speak of: a flow that we let through, told to the side that the quoted packet came
 * from; a workload (`here`) speaks only of what was sent to itself. 0 if it is so.
 */
static __always_inline int related(struct __sk_buff *skb, const struct packet *p, const struct config *c, __u32 here)
{
	__u32 zero = 0;
	struct icmp_room *room = bpf_map_lookup_elem(&icmp_rooms, &zero);
	struct ct_value *ct;
	__u8 side;

	if (!room || parse_quoted(skb, p, &room->quoted))
		return -1;
	if (!same_addr(&room->quoted.src, &p->t.dst))
		return -1;
	/* Path MTU discovery of the proxy's own connections. */
	if (of_proxy(skb, p, c, room, here)) {
		skb->mark = (skb->mark & ~MARK_MASK) | MARK_TO_PROXY;
		return 0;
	}
	side = ct_make_key(&room->key, &room->quoted);
	ct = bpf_map_lookup_elem(&conntrack, &room->key);
	if (!ct || (here && ct->ifindex[!side] != here))
		return -1;
	if (ct->verdict == VERDICT_REDIRECT)
		skb->mark = (skb->mark & ~MARK_MASK) | MARK_TO_PROXY;
	else
		skb->mark = (skb->mark & ~MARK_MASK) | MARK_JUDGED;
	return 0;
}

/* 1 if the source is not whom the device `here` (0: one of the node's own) can speak for. */
static __always_inline int borrowed_source(const struct packet *p, __u32 here)
{
	struct endpoint *src = bpf_map_lookup_elem(&endpoints, &p->t.src);
	struct ipcache_value *who;

	if (src)
		return src->ifindex != here;
	if (here)
		return 1;
	who = identify(&p->t.src);
	return who && who->flags & IPCACHE_LOCAL;
}

static __noinline int icmp_error(struct __sk_buff *skb, const struct packet *p, const struct config *c,
				      __u8 hook)
{
	__u32 here = hook == HOOK_FROM_WORKLOAD ? skb->ifindex : 0;
	struct decision d = {};

	/* At to_workload the node itself may speak. */
	if (hook != HOOK_TO_WORKLOAD && borrowed_source(p, here))
		return drop(p, &d, SPOOFED_SOURCE, hook);
	if (related(skb, p, c, here))
		return drop(p, &d, UNRELATED_ICMP_ERROR, hook);
	count(FORWARDED_STACK, p->length);
	return TC_ACT_OK;
}

/*
 * To the local workload behind `ifindex`, past this namespace's stack; or up the stack. What goes up carries no
 * mark of ours: if somebody's rule sends it on to a local workload after all (DNAT of a published port), it meets
 * to_workload as what it is by then.
 */
static __always_inline int forward(struct __sk_buff *skb, const struct packet *p, __u32 ifindex)
{
	if (ifindex) {
		count(FORWARDED_LOCAL, p->length);
		return bpf_redirect_peer(ifindex, 0);
	}
	count(FORWARDED_STACK, p->length);
	return TC_ACT_OK;
}

static __always_inline int to_proxy(struct __sk_buff *skb, const struct packet *p, struct decision *d, __u8 hook)
{
	if (!begins(p) && !assign_own(skb, p)) {
		count(REDIRECTED, p->length);
		return TC_ACT_OK;
	}
	if (assign_listener(skb, p, d->proxy_port))
		return drop(p, d, PROXY_NOT_READY, hook);
	count(REDIRECTED, p->length);
	return TC_ACT_OK;
}

/*
 * Who began a connection that was there before us, or whose entry was evicted? Clients' ports are picked from the
 * upper half (ip_local_port_range), servers' ports stand below. Where the client does not speak, both ways must be
 * allowed: else a forbidden client would pass as one who answers.
 */
static __always_inline int client_speaks(const struct packet *p)
{
	return bpf_ntohs(p->t.sport) >= FIRST_EPHEMERAL_PORT && bpf_ntohs(p->t.dport) < FIRST_EPHEMERAL_PORT;
}

/* The whole way of a packet at an ingress hook. `here` is 0 on the node's devices: no local workload speaks there. */
static __always_inline int ingress_hook(struct __sk_buff *skb, const struct packet *p, const struct config *c, __u8 hook)
{
	__u64 now = bpf_ktime_get_coarse_ns();
	struct ct_value *ct, fresh = {};
	int known, midstream, one_way = 0, answer = 0;
	struct judgement j;
	struct ct_key key;
	struct tuple first;
	__be16 port = p->policy_port;
	__u32 here = hook == HOOK_FROM_WORKLOAD ? skb->ifindex : 0;
	__u8 side = ct_make_key(&key, &p->t);

	ct = bpf_map_lookup_elem(&conntrack, &key);
	known = ct && continues(ct, p, side, now) && ct->ifindex[side & 1] == here;
	midstream = !ct && p->t.protocol == IPPROTO_TCP && !begins(p);
	if (known && ct->epoch == c->epoch) {
		if (ct->verdict == VERDICT_ALLOW) {
			ct_touch(ct, now);
			return forward(skb, p, ct->ifindex[!side]);
		}
		if (ct->verdict == VERDICT_REDIRECT && ct->initiator == side) {
			struct decision d = {.proxy_port = ct->proxy_port};

			return to_proxy(skb, p, &d, hook);
		}
	}

	if (p->icmp_error)
		return icmp_error(skb, p, c, hook);

	if (midstream && !client_speaks(p)) {
		first = reversed(&p->t);
		judge(&first, first.dport, c, &j);
		one_way = j.d.verdict != VERDICT_ALLOW;
	}

	/* An answer is judged as the flow that it answers. */
	first = p->t;
	if (known && ct->verdict != VERDICT_REDIRECT && ct->initiator != side)
		answer = 1;
	if (answer) {
		first = reversed(&p->t);
		port = asked_port(&first);
	}
	judge(&first, port, c, &j);
	if (!answer) {
		/* Who speaks must be who the device says (anti-spoofing), on both kinds of device. */
		if (j.src_ifindex != here || (!here && j.src_local_address))
			return drop(p, &j.d, SPOOFED_SOURCE, hook);
		if (!here && !j.dst_ifindex && j.d.verdict == VERDICT_ALLOW)
			return TC_ACT_OK;
	}
	if (j.d.verdict == VERDICT_DENY) {
		__u8 was = known ? ct->verdict : VERDICT_NONE;
		__be16 proxy_port = known ? ct->proxy_port : 0;

		/* Who began is kept: else the answering side's next segment would begin a flow of its own. */
		if (known && was != VERDICT_REDIRECT) {
			ct->verdict = VERDICT_DENY;
			ct->epoch = c->epoch;
		}
		if (answer)
			return drop(p, &j.d, POLICY_CHANGED, hook);
		/* A proxied connection: its resets must reach the proxy, it may outlive its route, else it is reset. */
		if (was == VERDICT_REDIRECT || (p->t.protocol == IPPROTO_TCP && !begins(p))) {
			if ((p->tcp_flags & TCP_RST || j.d.reason == UNTRANSLATED_SERVICE) && !assign_own(skb, p)) {
				count(REDIRECTED, p->length);
				return TC_ACT_OK;
			}
			if (was == VERDICT_REDIRECT && !assign_listener(skb, p, proxy_port)) {
				j.d.reason = POLICY_CHANGED;
				count(POLICY_CHANGED, p->length);
				tell(p, &j.d, hook);
				return TC_ACT_OK;
			}
		}
		return drop(p, &j.d, j.d.reason, hook);
	}
	if (answer && j.d.verdict != VERDICT_ALLOW)
		return drop(p, &j.d, POLICY_CHANGED, hook);

	/* A proxied connection goes on through the proxy to its end, also when no rule names it any more. */
	if (j.d.verdict == VERDICT_ALLOW && !answer && p->t.protocol == IPPROTO_TCP && !begins(p) &&
	    (!known || ct->verdict == VERDICT_REDIRECT) && !assign_own(skb, p)) {
		count(REDIRECTED, p->length);
		return TC_ACT_OK;
	}

	if (one_way)
		return drop(p, &j.d, POLICY_CHANGED, hook);

	/* Another listener reads it from now on (an L7 rule now names what a tunnel carries): it must begin anew there. */
	if (known && ct->verdict == VERDICT_REDIRECT && j.d.verdict == VERDICT_REDIRECT &&
	    ct->proxy_port != j.d.proxy_port && !(p->tcp_flags & TCP_RST) &&
	    !assign_listener(skb, p, j.d.proxy_port)) {
		j.d.reason = POLICY_CHANGED;
		count(POLICY_CHANGED, p->length);
		tell(p, &j.d, hook);
		return TC_ACT_OK;
	}

	if (!known)
		tell(p, &j.d, hook);
	fresh.seen = now;
	fresh.epoch = c->epoch;
	fresh.initiator = answer ? !side : side;
	fresh.verdict = j.d.verdict;
	fresh.proxy_port = j.d.proxy_port;
	if (fresh.initiator) {
		fresh.ifindex[1] = j.src_ifindex;
		fresh.ifindex[0] = j.dst_ifindex;
	} else {
		fresh.ifindex[0] = j.src_ifindex;
		fresh.ifindex[1] = j.dst_ifindex;
	}
	bpf_map_update_elem(&conntrack, &key, &fresh, BPF_ANY);
	if (j.d.verdict == VERDICT_REDIRECT)
		return to_proxy(skb, p, &j.d, hook);
	return forward(skb, p, answer ? j.src_ifindex : j.dst_ifindex);
}

#endif
