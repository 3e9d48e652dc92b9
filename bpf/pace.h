/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * How much one workload may ask of the proxy that it shares with the others: packets that open a connection or carry
 * data, at an even rate with room for a burst (the generic cell rate algorithm, ITU-T I.371, in its virtual scheduling
 * form). What is beyond is dropped before the proxy sees it, and TCP slows the sender down. Acknowledgements alone pass:
 * they cost the proxy next to nothing, and hold up what it sends.
 */
#ifndef PENSTOCK_PACE_H
#define PENSTOCK_PACE_H

#include "events.h"

#define PACE_BURST_NS 10000000ULL
#define PACE_TELL_NS 1000000000ULL

struct pace {
	/* When the next packet is due, if packets came evenly. Processors that race here let one more pass. */
	__u64 due;
	__u64 told;
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__type(key, __u32);
	__type(value, struct pace);
	__uint(max_entries, MAX_ENDPOINTS);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} paces SEC(".maps");

static __always_inline int gives_work(struct __sk_buff *skb, const struct packet *p)
{
	__u8 words = 0;

	if (p->tcp_flags & TCP_SYN)
		return 1;
	if (bpf_skb_load_bytes(skb, p->l4 + 12, &words, 1))
		return 1;
	return skb->len > p->l4 + (words >> 4) * 4U;
}

/* 1 if the workload behind `here` has had its share; 2 if that is worth telling. `gap` is in ns per packet. */
__noinline int over_pace(struct __sk_buff *skb, const struct packet *p, __u32 here, __u32 gap)
{
	__u64 now = bpf_ktime_get_ns();
	struct pace *pace, fresh = {};

	if (!p || !gives_work(skb, p))
		return 0;
	pace = bpf_map_lookup_elem(&paces, &here);
	if (!pace) {
		fresh.due = now - PACE_BURST_NS + gap;
		bpf_map_update_elem(&paces, &here, &fresh, BPF_ANY);
		return 0;
	}
	if (pace->due > now) {
		if (now - pace->told < PACE_TELL_NS)
			return 1;
		pace->told = now;
		return 2;
	}
	if (pace->due < now - PACE_BURST_NS)
		pace->due = now - PACE_BURST_NS;
	pace->due += gap;
	return 0;
}

#endif
