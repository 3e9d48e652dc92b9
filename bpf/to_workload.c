/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * tcx egress, host side of a workload's veth: what neither from_workload nor from_netdev has judged. That is
 * the node's own processes, and packets from devices that carry no program. Nothing can be redirected here.
 */
#include "flow.h"

static __always_inline int pass(struct ct_value *ct, const struct packet *p, __u64 now)
{
	ct_touch(ct, now);
	count(FORWARDED_STACK, p->length);
	return TC_ACT_OK;
}

SEC("tc")
int to_workload(struct __sk_buff *skb)
{
	__u32 mark = skb->mark & MARK_MASK;
	struct ct_value *ct, fresh = {};
	struct judgement j;
	struct config *c;
	struct ct_key key;
	struct packet p;
	struct tuple first;
	__u32 zero = 0;
	__be16 port;
	__u64 now;
	__u8 side;
	int parsed, known, answer;

	if (mark == MARK_PROXY_DOWNSTREAM || mark == MARK_PROXY_UPSTREAM || mark == MARK_PROXY_EDGE) {
		count(FROM_PROXY, skb->len);
		return TC_ACT_OK;
	}
	if (mark == MARK_JUDGED)
		return TC_ACT_OK;
	parsed = parse(skb, &p);
	if (parsed)
		return unparsed(&p, parsed, HOOK_TO_WORKLOAD);
	c = bpf_map_lookup_elem(&config, &zero);
	if (!c)
		return TC_ACT_SHOT;

	now = bpf_ktime_get_coarse_ns();
	side = ct_make_key(&key, &p.t);
	ct = bpf_map_lookup_elem(&conntrack, &key);
	known = ct && continues(ct, &p, side, now) && ct->verdict == VERDICT_ALLOW;
	if (known && ct->epoch == c->epoch)
		return pass(ct, &p, now);
	if (p.icmp_error)
		return icmp_error(skb, &p, c, HOOK_TO_WORKLOAD);

	/* An answer is judged as the flow that it answers. */
	first = p.t;
	port = p.policy_port;
	answer = known && ct->initiator != side;
	if (answer) {
		first = reversed(&p.t);
		port = asked_port(&first);
	}
	judge(&first, port, c, &j);
	if (answer) {
		if (j.d.verdict != VERDICT_ALLOW) {
			bpf_map_delete_elem(&conntrack, &key);
			return drop(&p, &j.d, POLICY_CHANGED, HOOK_TO_WORKLOAD);
		}
		ct->epoch = c->epoch;
		return pass(ct, &p, now);
	}
	if (j.dst_ifindex != skb->ifindex)
		return drop(&p, &j.d, SPOOFED_SOURCE, HOOK_TO_WORKLOAD);
	if (j.d.verdict == VERDICT_REDIRECT)
		return drop(&p, &j.d, PROXY_NOT_READY, HOOK_TO_WORKLOAD);
	if (j.d.verdict != VERDICT_ALLOW)
		return drop(&p, &j.d, j.d.reason, HOOK_TO_WORKLOAD);

	j.d.reason = FORWARDED_STACK;
	if (!known)
		tell(&p, &j.d, HOOK_TO_WORKLOAD);
	fresh.seen = now;
	fresh.epoch = c->epoch;
	fresh.initiator = side;
	fresh.verdict = VERDICT_ALLOW;
	if (side)
		fresh.ifindex[0] = j.dst_ifindex;
	else
		fresh.ifindex[1] = j.dst_ifindex;
	bpf_map_update_elem(&conntrack, &key, &fresh, BPF_ANY);
	count(FORWARDED_STACK, p.length);
	return TC_ACT_OK;
}

char _license[] SEC("license") = "GPL";
