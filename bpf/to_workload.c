/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * tcx egress, host side of a workload's veth: what has not been handed to it past the stack and its bridge. That is
 * the node's own processes, the proxy, what a bridge or somebody's rule brought, and what came by devices that carry
 * no program. Nothing can be given to the proxy here; at a bridge's port it is taken to where that can be done.
 */
#include "flow.h"
#include "port.h"

static __always_inline int pass(struct __sk_buff *skb, struct ct_value *ct, struct packet *p, __u64 now)
{
	if (ct->nat)
		nat_answer(skb, p);
	ct_touch(ct, now);
	if (p->tcp_flags & (TCP_FIN | TCP_RST))
		ct->ending = 1;
	count(FORWARDED_STACK, p->length);
	return TC_ACT_OK;
}

/* What a bridge sends to all its ports (broadcast, multicast) is for nobody by name: each port's workload judges. */
static __noinline int to_all(struct __sk_buff *skb, const struct packet *p, const struct config *c,
			     const struct port *at)
{
	struct endpoint *src = bpf_map_lookup_elem(&endpoints, &p->t.src);
	struct decision d = {.src_identity = IDENTITY_WORLD};
	__u8 flags = 0;
	struct ipcache_value *who;

	if (src) {
		d.src_identity = src->identity;
		if ((skb->mark & MARK_MASK) != MARK_PROVEN)
			return drop(p, &d, SPOOFED_SOURCE, HOOK_TO_WORKLOAD);
	} else {
		who = identify(&p->t.src);
		if (who)
			d.src_identity = who->identity;
		if (d.src_identity == IDENTITY_HOST && skb->ingress_ifindex)
			return drop(p, &d, SPOOFED_SOURCE, HOOK_TO_WORKLOAD);
	}
	if (!(d.src_identity == IDENTITY_HOST && c->flags & CONFIG_HOST_ACCESS) &&
	    policy_verdict(at->subject, INGRESS, d.src_identity, p->t.protocol, p->policy_port, &d.rule, &flags) !=
		    VERDICT_ALLOW) {
		count(POLICY_DENIED_INGRESS, p->length);
		return TC_ACT_SHOT;
	}
	count(FORWARDED_STACK, p->length);
	return TC_ACT_OK;
}

/*
 * To the listener on `port`, or with 0 to the proxy's own socket, by way of the bridge's ingress: what came this far
 * was brought by a rule of the node's (the port that a container publishes). Less than 0 if there is no such socket.
 */
static __noinline int bring(struct __sk_buff *skb, const struct packet *p, __be16 port)
{
	struct tuple t = {.dport = port, .protocol = IPPROTO_TCP};
	struct port *at = port_here(skb);
	int state;

	if (!at || !at->bridge || p->t.protocol != IPPROTO_TCP)
		return -1;
	state = begins(p) ? 0 : socket_state(skb, p, &p->t);
	if (state && state != TCP_STATE_LISTEN) {
		port = 0;
	} else {
		t.dst.w[3] = p->ipv6 ? bpf_htonl(1) : bpf_htonl(0x7f000001);
		if (!port || socket_state(skb, p, &t) != TCP_STATE_LISTEN)
			return -1;
	}
	if (bpf_skb_store_bytes(skb, 0, at->bridge_mac, sizeof(at->bridge_mac), 0))
		return -1;
	skb->mark = MARK_BROUGHT | (__u32)bpf_ntohs(port) << 16;
	return bpf_redirect(at->bridge, BPF_F_INGRESS);
}

/* `at` is 0 where the link is the only one of its workload, and routed. */
static __always_inline int to(struct __sk_buff *skb, __u32 here, const struct port *at)
{
	__u32 mark = skb->mark & MARK_MASK;
	struct ct_value *ct;
	struct decision nobody = {};
	struct judgement j;
	struct config *c;
	struct packet p;
	struct flow_room *r;
	__u32 zero = 0;
	__be16 port;
	__u64 now;
	__u8 side, macs[6] = {};
	int parsed, known, answer, action = -1;
	/* What the node itself sends has come in nowhere. */
	int foreign = skb->ingress_ifindex != 0 || mark == MARK_FOR_OTHERS;

	if (at && bpf_skb_load_bytes(skb, 0, macs, sizeof(macs)))
		return TC_ACT_SHOT;
	/* A bridge that does not know where an address is sends the frame to all its ports. */
	if (at && !(macs[0] & 1) && !same_mac(macs, at->mac)) {
		count(NOT_FOR_THIS_PORT, skb->len);
		return TC_ACT_SHOT;
	}
	if (mark == MARK_PROXY_DOWNSTREAM || mark == MARK_PROXY_UPSTREAM || mark == MARK_PROXY_EDGE) {
		/* The client may have asked for a Service. */
		if (mark == MARK_PROXY_DOWNSTREAM && nat_in_use() && !parse(skb, &p))
			nat_answer(skb, &p);
		count(FROM_PROXY, skb->len);
		return TC_ACT_OK;
	}
	if (mark == MARK_JUDGED) {
		if (nat_in_use() && !parse(skb, &p))
			nat_error_about_question(skb, &p);
		return TC_ACT_OK;
	}
	parsed = parse(skb, &p);
	if (at && parsed == PARSED_NOT_IP && skb->protocol != bpf_htons(ETH_P_ARP))
		return drop(&p, &nobody, LINK_PROTOCOL, HOOK_TO_WORKLOAD);
	if (parsed)
		return unparsed(&p, parsed, HOOK_TO_WORKLOAD);
	c = bpf_map_lookup_elem(&config, &zero);
	if (!c)
		return TC_ACT_SHOT;
	if (at && macs[0] & 1 && !bpf_map_lookup_elem(&endpoints, &p.t.dst))
		return to_all(skb, &p, c, at);

	r = bpf_map_lookup_elem(&flow_rooms, &zero);
	if (!r)
		return TC_ACT_SHOT;
	now = bpf_ktime_get_coarse_ns();
	side = ct_make_key(&r->key, &p.t);
	ct = bpf_map_lookup_elem(&conntrack, &r->key);
	known = ct && continues(ct, &p, side, now) && ct->verdict == VERDICT_ALLOW;
	if (known && ct->ifindex[side & 1] && mark != MARK_PROVEN)
		return drop(&p, &nobody, SPOOFED_SOURCE, HOOK_TO_WORKLOAD);
	if (known && ct->of_node && foreign && ct->initiator == side)
		known = 0;
	if (known && ct->epoch == c->epoch)
		return pass(skb, ct, &p, now);
	if (p.icmp_error) {
		if (mark != MARK_PROVEN && bpf_map_lookup_elem(&endpoints, &p.t.src))
			return drop(&p, &nobody, SPOOFED_SOURCE, HOOK_TO_WORKLOAD);
		action = icmp_error(skb, &p, c, 0, HOOK_TO_WORKLOAD);
		if (action == TC_ACT_OK && nat_in_use())
			nat_error_about_question(skb, &p);
		return action;
	}

	/* An answer is judged as the flow that it answers. */
	r->first = p.t;
	port = p.policy_port;
	answer = known && ct->initiator != side;
	if (answer) {
		r->first = reversed(&p.t);
		port = asked_port(&r->first);
	}
	judge(&r->first, port, c, &j, foreign);
	if (!ct || ct->verdict == VERDICT_ALLOW)
		leave_unwatched(&j.d, &p);
	if (answer) {
		if (j.d.verdict != VERDICT_ALLOW) {
			bpf_map_delete_elem(&conntrack, &r->key);
			return drop(&p, &j.d, POLICY_CHANGED, HOOK_TO_WORKLOAD);
		}
		ct->epoch = c->epoch;
		return pass(skb, ct, &p, now);
	}
	if (j.dst_ifindex != here || (j.src_ifindex && mark != MARK_PROVEN))
		return drop(&p, &j.d, SPOOFED_SOURCE, HOOK_TO_WORKLOAD);
	if (at && foreign && j.d.verdict == VERDICT_REDIRECT)
		action = bring(skb, &p, j.d.proxy_port);
	if (j.d.verdict == VERDICT_REDIRECT && action < 0)
		return drop(&p, &j.d, PROXY_NOT_READY, HOOK_TO_WORKLOAD);
	if (j.d.verdict != VERDICT_ALLOW && action < 0)
		return drop(&p, &j.d, j.d.reason, HOOK_TO_WORKLOAD);
	/* A proxied connection goes on through the proxy to its end, also when no rule names it any more. */
	if (ct && ct->verdict == VERDICT_REDIRECT) {
		known = 1;
		if (action < 0 && !begins(&p))
			action = bring(skb, &p, 0);
	}

	j.d.reason = action < 0 ? FORWARDED_STACK : REDIRECTED;
	if (!known)
		tell(&p, &j.d, HOOK_TO_WORKLOAD);
	if (j.audit)
		tell_audit(&p, &j, HOOK_TO_WORKLOAD);
	__builtin_memset(&r->fresh, 0, sizeof(r->fresh));
	r->fresh.seen = now;
	r->fresh.born = known ? ct->born : bpf_ktime_get_tai_ns();
	r->fresh.epoch = c->epoch;
	r->fresh.initiator = side;
	r->fresh.of_node = !foreign;
	r->fresh.verdict = action < 0 ? VERDICT_ALLOW : VERDICT_REDIRECT;
	r->fresh.proxy_port = j.d.proxy_port ? j.d.proxy_port : ct ? ct->proxy_port : 0;
	if (side) {
		r->fresh.ifindex[1] = j.src_ifindex;
		r->fresh.ifindex[0] = j.dst_ifindex;
	} else {
		r->fresh.ifindex[0] = j.src_ifindex;
		r->fresh.ifindex[1] = j.dst_ifindex;
	}
	bpf_map_update_elem(&conntrack, &r->key, &r->fresh, BPF_ANY);
	count(j.d.reason, p.length);
	return action < 0 ? TC_ACT_OK : action;
}

SEC("tc")
int to_workload(struct __sk_buff *skb)
{
	return to(skb, skb->ifindex, 0);
}

/* The same for a bridge's port, and for each link of a workload that has several. */
SEC("tc")
int to_port(struct __sk_buff *skb)
{
	struct port *at = port_here(skb);

	/* Being attached or let go just now. */
	if (!at || !at->home)
		return TC_ACT_SHOT;
	return to(skb, at->home, at);
}

char _license[] SEC("license") = "GPL";
