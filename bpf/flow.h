/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * The way of a packet at an ingress hook: what is known of its flow, what is judged anew, and where it goes: to a
 * local workload, up the stack, or to the proxy.
 */
#ifndef PENSTOCK_FLOW_H
#define PENSTOCK_FLOW_H

#include "conntrack.h"
#include "icmp.h"
#include "judge.h"
#include "leave.h"
#include "nat_error.h"
#include "nat_forward.h"
#include "pace.h"

/* net.ipv4.ip_local_port_range begins here by default. */
#define FIRST_EPHEMERAL_PORT 32768

/*
 * To the local workload behind `ifindex`, past this namespace's stack and bridges; or their way. Of what goes their
 * way only the sender is known for good: if somebody's rule sends it on to a local workload after all (DNAT of a
 * published port), it meets to_workload as what it is by then.
 */
static __always_inline int forward(struct __sk_buff *skb, struct packet *p, __u32 ifindex, int direct, int nat,
				   struct way w)
{
	if (ifindex && direct) {
		/* Any other way goes by to_workload or to_netdev, and the stack takes no packet from a Service. */
		if (nat)
			nat_answer(skb, p);
		count(FORWARDED_LOCAL, p->length);
		/* A bridge's port takes frames that bear its neighbours' addresses. */
		if (w.bridged)
			bpf_skb_change_type(skb, PACKET_HOST);
		return bpf_redirect_peer(ifindex, 0);
	}
	if (!ifindex && direct && w.here && w.bridged) {
		int action = leave(skb, p);

		if (action >= 0) {
			count(FORWARDED_STACK, p->length);
			return action;
		}
	}
	if (w.here)
		skb->mark = (skb->mark & ~MARK_MASK) | MARK_PROVEN;
	count(ifindex ? FORWARDED_LOCAL : FORWARDED_STACK, p->length);
	return TC_ACT_OK;
}

/*
 * 1 if packets of the flow to a local workload need not go the way that the kernel would take. Between routed veths
 * nobody else has a say. Frames within a bridge are its ports' own matter, unless netfilter was asked to see them.
 * Between bridges, and between one and the world, the engine that made them has its rules (Docker's isolation); between
 * nodes of the mesh it has no say (leave.h).
 */
static __noinline int short_cut(const struct judgement *j, int ipv6)
{
	__u32 src = j->src_ifindex, dst = j->dst_ifindex;
	struct port *from = bpf_map_lookup_elem(&ports, &src);
	struct port *to = bpf_map_lookup_elem(&ports, &dst);
	__u32 a = from ? from->bridge : 0, b = to ? to->bridge : 0;

	if (j->elsewhere)
		return 0;
	if (src && dst)
		return a == b && (!from || !a || from->flags & (ipv6 ? PORT_DIRECT6 : PORT_DIRECT4));
	if (src)
		return !a || j->dst_mesh;
	return !b || j->src_mesh;
}

static __always_inline int to_proxy(struct __sk_buff *skb, const struct packet *p, const struct config *c,
				    struct decision *d, struct way w)
{
	int udp = p->t.protocol == IPPROTO_UDP;
	int over = !udp && c->proxy_gap && w.here ? over_pace(skb, p, w.here, c->proxy_gap) : 0;

	if (udp) {
		if (to_datagrams(skb, p, d->proxy_port, w))
			return drop(p, d, PROXY_NOT_READY, w.hook);
		count(REDIRECTED, p->length);
		return TC_ACT_OK;
	}
	if (over > 1)
		return drop(p, d, PROXY_OVERUSED, w.hook);
	if (over) {
		count(PROXY_OVERUSED, p->length);
		return TC_ACT_SHOT;
	}
	if (!begins(p) && !to_own(skb, p, w)) {
		count(REDIRECTED, p->length);
		return TC_ACT_OK;
	}
	if (to_listener(skb, p, d->proxy_port, w))
		return drop(p, d, PROXY_NOT_READY, w.hook);
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

/* An error about a proxied connection goes to the proxy's socket: up the bridge, too. */
static __always_inline int ingress_error(struct __sk_buff *skb, struct packet *p, const struct config *c,
					 struct way w)
{
	int action;

	if (w.here && nat_in_use())
		nat_error_about_answer(skb, p);
	action = icmp_error(skb, p, c, w.here, w.hook);
	if (w.bridged && action == TC_ACT_OK && (skb->mark & MARK_MASK) == MARK_TO_PROXY) {
		if (raise(skb, 0))
			return TC_ACT_SHOT;
		skb->mark = (skb->mark & ~MARK_MASK) | MARK_TO_PROXY;
	}
	return action;
}

/*
 * 1 if a connection is known to have a server name that the listener lets pass which judge() has just come to.
 */
static __noinline int may_go_on(const struct ct_key *key)
{
	struct looked_at *known = bpf_map_lookup_elem(&looked_at, key);
	struct policy_room *r;
	__u32 zero = 0;

	r = bpf_map_lookup_elem(&policy_rooms, &zero);
	return known && r && known->goes_on.kind == r->listener.kind &&
	       known->goes_on.source_class == r->listener.source_class &&
	       known->goes_on.destination == r->listener.destination &&
	       known->goes_on.outward == r->listener.outward && known->goes_on.inward == r->listener.inward;
}

/* Part of what a packet needs, apart from the 512 bytes of stack that are shared with all that is called. */
struct flow_room {
	struct ct_key key;
	struct ct_value fresh;
	struct tuple first;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__type(key, __u32);
	__type(value, struct flow_room);
	__uint(max_entries, 1);
} flow_rooms SEC(".maps");

/* The whole way of a packet at an ingress hook. `nat` says what became of one to a Service there (nat_forward.h). */
static __always_inline int ingress_hook(struct __sk_buff *skb, struct packet *p, const struct config *c, struct way w,
					int nat)
{
	__u64 now = bpf_ktime_get_coarse_ns();
	struct ct_value *ct;
	int known, midstream, one_way = 0, answer = 0, direct;
	struct judgement j;
	struct flow_room *r;
	__u32 zero = 0;
	__be16 port = p->policy_port;
	__u32 here = w.here;
	__u8 hook = w.hook;
	__u8 side;

	r = bpf_map_lookup_elem(&flow_rooms, &zero);
	if (!r)
		return TC_ACT_SHOT;
	side = ct_make_key(&r->key, &p->t);
	ct = bpf_map_lookup_elem(&conntrack, &r->key);
	known = ct && continues(ct, p, side, now) && ct->ifindex[side & 1] == here;
	/* Also where a Service has come to an address that was spoken to before; not what the proxy carries. */
	if (here && (!known || (ct->epoch != c->epoch && ct->verdict != VERDICT_REDIRECT))) {
		nat = nat_forward(skb, p, c, here);
		if (nat == NAT_REFUSED)
			return reject(skb, p, NO_BACKEND, hook);
		if (nat == NAT_SELF || (nat == NAT_NONE && !known && nat_answers_itself(skb, p)))
			return forward(skb, p, here, 1, 0, w);
		if (nat == NAT_DONE) {
			if (ct)
				bpf_map_delete_elem(&conntrack, &r->key);
			side = ct_make_key(&r->key, &p->t);
			ct = bpf_map_lookup_elem(&conntrack, &r->key);
			known = ct && continues(ct, p, side, now) && ct->ifindex[side & 1] == here;
			port = p->policy_port;
		}
	}
	midstream = !ct && p->t.protocol == IPPROTO_TCP && !begins(p);
	if (known && ct->epoch == c->epoch) {
		if (ct->verdict == VERDICT_ALLOW) {
			__u32 to = ct->ifindex[!side];
			int past = ct->direct, translated = ct->nat;

			ct_touch(ct, now);
			if (p->tcp_flags & (TCP_FIN | TCP_RST))
				ct->ending = 1;
			/* So that a flood towards a closed port takes no room from those who are served. */
			if (p->tcp_flags & TCP_RST && ct->initiator != side) {
				count(ANSWERED_RESET, p->length);
				bpf_map_delete_elem(&conntrack, &r->key);
			}
			return forward(skb, p, to, past, translated, w);
		}
		if (ct->verdict == VERDICT_REDIRECT && ct->initiator == side) {
			struct decision d = {.proxy_port = ct->proxy_port};

			return to_proxy(skb, p, c, &d, w);
		}
	}

	if (p->icmp_error)
		return ingress_error(skb, p, c, w);

	if (midstream && !client_speaks(p)) {
		r->first = reversed(&p->t);
		judge(&r->first, r->first.dport, c, &j, 0);
		leave_unwatched(&j.d, p);
		one_way = j.d.verdict != VERDICT_ALLOW;
	}

	/* An answer is judged as the flow that it answers. */
	r->first = p->t;
	if (known && ct->verdict != VERDICT_REDIRECT && ct->initiator != side)
		answer = 1;
	if (answer) {
		r->first = reversed(&p->t);
		port = asked_port(&r->first);
	}
	judge(&r->first, port, c, &j, 0);
	if (!known || ct->verdict == VERDICT_ALLOW)
		leave_unwatched(&j.d, p);
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
		if (p->t.protocol == IPPROTO_TCP && (was == VERDICT_REDIRECT || !begins(p))) {
			if ((p->tcp_flags & TCP_RST || j.d.reason == UNTRANSLATED_SERVICE ||
			     (j.d.reason == PROXY_NOT_READY && may_go_on(&r->key))) &&
			    !to_own(skb, p, w)) {
				count(REDIRECTED, p->length);
				return TC_ACT_OK;
			}
			if (was == VERDICT_REDIRECT && !to_listener(skb, p, proxy_port, w)) {
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
	    (!known || ct->verdict == VERDICT_REDIRECT) && !to_own(skb, p, w)) {
		count(REDIRECTED, p->length);
		return TC_ACT_OK;
	}

	if (one_way)
		return drop(p, &j.d, POLICY_CHANGED, hook);

	/*
	 * Another listener reads it from now on (an L7 rule now names what a tunnel carries): it must begin anew there.
	 * Where a tunnel would do, or an audit looks on, it goes on where it is.
	 */
	if (known && p->t.protocol == IPPROTO_TCP && ct->verdict == VERDICT_REDIRECT && j.d.verdict == VERDICT_REDIRECT &&
	    ct->proxy_port != j.d.proxy_port && !(p->tcp_flags & TCP_RST) && !may_go_on(&r->key)) {
		if (((j.d.tunnel && !ct->tunnel) || j.d.watched) && !to_own(skb, p, w)) {
			count(REDIRECTED, p->length);
			return TC_ACT_OK;
		}
		if (to_listener(skb, p, j.d.proxy_port, w))
			return drop(p, &j.d, PROXY_NOT_READY, hook);
		j.d.reason = POLICY_CHANGED;
		count(POLICY_CHANGED, p->length);
		tell(p, &j.d, hook);
		return TC_ACT_OK;
	}

	if (!known)
		tell(p, &j.d, hook);
	if (midstream)
		count(CONNECTION_RESUMED, p->length);
	if (j.audit && !answer)
		tell_audit(p, &j, hook);
	__builtin_memset(&r->fresh, 0, sizeof(r->fresh));
	r->fresh.seen = now;
	r->fresh.born = known ? ct->born : bpf_ktime_get_tai_ns();
	r->fresh.epoch = c->epoch;
	r->fresh.initiator = answer ? !side : side;
	direct = short_cut(&j, p->ipv6);
	r->fresh.direct = direct;
	r->fresh.verdict = j.d.verdict;
	r->fresh.proxy_port = j.d.proxy_port;
	r->fresh.tunnel = j.d.tunnel && !j.d.watched;
	/* What answered a Service's client before its entry was evicted goes on to do so. */
	r->fresh.nat = nat == NAT_DONE || (known && ct->nat) || (midstream && nat_in_use() && nat_answers(p));
	if (!known && !r->fresh.nat)
		nat_forget(&p->t);
	if (r->fresh.initiator) {
		r->fresh.ifindex[1] = j.src_ifindex;
		r->fresh.ifindex[0] = j.dst_ifindex;
	} else {
		r->fresh.ifindex[0] = j.src_ifindex;
		r->fresh.ifindex[1] = j.dst_ifindex;
	}
	bpf_map_update_elem(&conntrack, &r->key, &r->fresh, BPF_ANY);
	if (j.d.verdict == VERDICT_REDIRECT)
		return to_proxy(skb, p, c, &j.d, w);
	return forward(skb, p, answer ? j.src_ifindex : j.dst_ifindex, direct, r->fresh.nat, w);
}

#endif
