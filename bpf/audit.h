/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * The dry run of policies in audit: beside its entries a subject has a view with those policies enforced. What the view
 * would deny is told, and goes its way; only where enforced policy lets through is the view looked at.
 */
#ifndef PENSTOCK_AUDIT_H
#define PENSTOCK_AUDIT_H

#include "events.h"
#include "policy.h"

struct judgement {
	struct decision d;
	__u32 src_ifindex;
	__u32 dst_ifindex;
	__u32 audit_rule;
	__u8 src_local_address;
	__u8 src_mesh;
	__u8 dst_mesh;
	/* One of the two is on another link of its workload than the one that its ifindex means. */
	__u8 elsewhere;
	/* The reason of the view that would have denied first, or 0. */
	__u8 audit;
	__u8 audit_redirect;
	/* What the other end is may follow from a name that the sender asked for. */
	__u8 named;
};

/* Global, as judge(): the verifier goes through it once, and not again at each place that calls it. */
__noinline int audit(struct judgement *j, const struct tuple *t, __u32 subject, __u8 direction, __be16 port)
{
	__u8 verdict, flags = 0;
	__u32 rule = 0, peer, zero = 0;
	struct policy_room *r;

	r = bpf_map_lookup_elem(&policy_rooms, &zero);
	if (!j || !t || !r)
		return 0;
	peer = direction == EGRESS ? j->d.dst_identity : j->d.src_identity;

	verdict = policy_verdict(subject | AUDIT_VIEW, direction, peer, t->protocol, port, &rule, &flags);
	if (direction == EGRESS && j->named)
		verdict = with_names(verdict, r->view, r->server_names_of_name, r, &rule, &flags);
	if (verdict == VERDICT_NAMES)
		r->viewed[direction & 1] = r->server_names;
	if (verdict == VERDICT_REDIRECT && !(flags & POLICY_DNS))
		j->audit_redirect = 1;
	if (verdict == VERDICT_DENY && !j->audit) {
		j->audit = direction == EGRESS ? AUDIT_DENIED_EGRESS : AUDIT_DENIED_INGRESS;
		j->audit_rule = rule;
	}
	return verdict;
}

/* Tell what would have been denied. */
__noinline int tell_audit(const struct packet *p, const struct judgement *j, __u8 hook)
{
	struct decision d;

	if (!p || !j)
		return 0;
	d = j->d;
	d.reason = j->audit;
	d.rule = j->audit_rule;
	count(d.reason, p->length);
	tell(p, &d, hook);
	return 0;
}

#endif
