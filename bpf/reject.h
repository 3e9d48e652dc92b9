/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * Saying no at once, to a Service without a backend: a TCP reset (RFC 9293, 3.5.2) or ICMP port unreachable (RFC 792;
 * RFC 4443, 3.1), made out of the packet itself and sent back by the device it came in at.
 */
#ifndef PENSTOCK_REJECT_H
#define PENSTOCK_REJECT_H

#include "events.h"

#define ICMP_QUOTED_PORTS 8

struct tcp_head {
	__be16 source;
	__be16 dest;
	__be32 seq;
	__be32 ack;
	__u8 offset;
	__u8 flags;
	__be16 window;
	__be16 check;
	__be16 urgent;
};

/* What is written, apart from the 512 bytes of stack. */
struct reject_room {
	struct tcp_head was;
	struct tcp_head is;
	struct ipv6hdr v6;
	struct iphdr v4;
	__be32 pseudo[10];
	__be32 quoted[14];
	__u8 mac[12];
	__u8 turned[12];
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__type(key, __u32);
	__type(value, struct reject_room);
	__uint(max_entries, 1);
} reject_rooms SEC(".maps");

static __always_inline struct reject_room *reject_room(void)
{
	__u32 zero = 0;
	struct reject_room *r = bpf_map_lookup_elem(&reject_rooms, &zero);

	if (r)
		__builtin_memset(r, 0, sizeof(*r));
	return r;
}

static __always_inline __u16 fold(__u64 sum)
{
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return ~sum;
}

static __always_inline int reject_mac(struct __sk_buff *skb, struct reject_room *r)
{
	if (bpf_skb_load_bytes(skb, 0, r->mac, sizeof(r->mac)))
		return -1;
	__builtin_memcpy(r->turned, r->mac + 6, 6);
	__builtin_memcpy(r->turned + 6, r->mac, 6);
	return bpf_skb_store_bytes(skb, 0, r->turned, sizeof(r->turned), 0);
}

/* The IP header of what is sent back from the packet's destination: `length` bytes follow it. */
static __always_inline int reject_ip(struct __sk_buff *skb, const struct packet *p, struct reject_room *r,
				     __u8 protocol, __u32 length)
{
	if (p->ipv6) {
		r->v6.version = 6;
		r->v6.payload_len = bpf_htons(length);
		r->v6.nexthdr = protocol;
		r->v6.hop_limit = 64;
		__builtin_memcpy(&r->v6.saddr, &p->t.dst, 16);
		__builtin_memcpy(&r->v6.daddr, &p->t.src, 16);
		return bpf_skb_store_bytes(skb, ETH_HLEN, &r->v6, sizeof(r->v6), 0);
	}
	r->v4.version = 4;
	r->v4.ihl = 5;
	r->v4.tot_len = bpf_htons(sizeof(r->v4) + length);
	r->v4.ttl = 64;
	r->v4.protocol = protocol;
	r->v4.saddr = p->t.dst.w[3];
	r->v4.daddr = p->t.src.w[3];
	r->v4.check = fold(bpf_csum_diff(0, 0, (__be32 *)&r->v4, sizeof(r->v4), 0));
	return bpf_skb_store_bytes(skb, ETH_HLEN, &r->v4, sizeof(r->v4), 0);
}

/* The sum of the pseudo-header (RFC 9293, 3.1; RFC 8200, 8.1) of what goes back. */
static __always_inline __u32 reject_pseudo(const struct packet *p, struct reject_room *r, __u8 protocol, __u32 length)
{
	__be32 *words = r->pseudo;

	words[3] = p->t.src.w[3], words[7] = p->t.dst.w[3];
	/* Of an IPv4-mapped address only the last word counts. */
	if (p->ipv6) {
		words[0] = p->t.src.w[0], words[1] = p->t.src.w[1], words[2] = p->t.src.w[2];
		words[4] = p->t.dst.w[0], words[5] = p->t.dst.w[1], words[6] = p->t.dst.w[2];
	}
	words[8] = bpf_htonl(length);
	words[9] = bpf_htonl(protocol);
	return bpf_csum_diff(0, 0, words, sizeof(r->pseudo), 0);
}

static __noinline int reject_tcp(struct __sk_buff *skb, const struct packet *p)
{
	__u32 start = ETH_HLEN + (p->ipv6 ? sizeof(struct ipv6hdr) : sizeof(struct iphdr));
	struct reject_room *r = reject_room();

	if (!r || p->l4 != start || p->tcp_flags & TCP_RST)
		return -1;
	if (bpf_skb_load_bytes(skb, start, &r->was, sizeof(r->was)))
		return -1;
	if (bpf_skb_change_tail(skb, start + sizeof(r->is), 0))
		return -1;
	r->is.source = p->t.dport;
	r->is.dest = p->t.sport;
	r->is.offset = 5 << 4;
	r->is.flags = TCP_RST;
	if (r->was.flags & TCP_ACK) {
		r->is.seq = r->was.ack;
	} else {
		r->is.flags |= TCP_ACK;
		r->is.ack = bpf_htonl(bpf_ntohl(r->was.seq) + (r->was.flags & TCP_SYN ? 1 : 0));
	}
	r->is.check = fold(bpf_csum_diff(0, 0, (__be32 *)&r->is, sizeof(r->is),
					 reject_pseudo(p, r, IPPROTO_TCP, sizeof(r->is))));
	if (reject_mac(skb, r) || reject_ip(skb, p, r, IPPROTO_TCP, sizeof(r->is)))
		return -1;
	return bpf_skb_store_bytes(skb, start, &r->is, sizeof(r->is), 0);
}

static __noinline int reject_udp(struct __sk_buff *skb, const struct packet *p)
{
	__u32 ip_length = p->ipv6 ? sizeof(struct ipv6hdr) : sizeof(struct iphdr);
	__u32 start = ETH_HLEN + ip_length, length = 8 + ip_length + ICMP_QUOTED_PORTS;
	struct reject_room *r = reject_room();
	__u8 *head;
	__u32 sum;

	if (!r || p->l4 != start)
		return -1;
	head = (__u8 *)r->quoted;
	/* The ICMP header's 8 bytes, then what is quoted. Of IPv4 that is less; the rest are zeros, which add nothing. */
	if (p->ipv6 ? bpf_skb_load_bytes(skb, ETH_HLEN, head + 8, sizeof(struct ipv6hdr) + ICMP_QUOTED_PORTS) :
		      bpf_skb_load_bytes(skb, ETH_HLEN, head + 8, sizeof(struct iphdr) + ICMP_QUOTED_PORTS))
		return -1;
	if (bpf_skb_change_tail(skb, start + ICMP_QUOTED_PORTS, 0))
		return -1;
	if (bpf_skb_adjust_room(skb, ip_length + 8, BPF_ADJ_ROOM_MAC, 0))
		return -1;
	head[0] = p->ipv6 ? 1 : 3;
	head[1] = p->ipv6 ? 4 : 3;
	sum = bpf_csum_diff(0, 0, r->quoted, sizeof(r->quoted),
			    p->ipv6 ? reject_pseudo(p, r, IPPROTO_ICMPV6, length) : 0);
	*(__u16 *)&head[2] = fold(sum);
	if (reject_mac(skb, r) || reject_ip(skb, p, r, p->ipv6 ? IPPROTO_ICMPV6 : IPPROTO_ICMP, length))
		return -1;
	/* The quoted packet stands behind it already. */
	return bpf_skb_store_bytes(skb, start, head, 8, 0);
}

/* Counts and tells `reason`, and sends the no; a fragment or what carries options is dropped without a word. */
__noinline int reject(struct __sk_buff *skb, const struct packet *p, __u8 reason, __u8 hook)
{
	struct decision d = {};

	if (!p)
		return TC_ACT_SHOT;
	drop(p, &d, reason, hook);
	if (!p->l4 || (p->t.protocol == IPPROTO_TCP ? reject_tcp(skb, p) : reject_udp(skb, p)))
		return TC_ACT_SHOT;
	/* It was judged here: to_workload is not to look for a flow of it. */
	skb->mark = (skb->mark & ~MARK_MASK) | MARK_JUDGED;
	return bpf_redirect(skb->ifindex, 0);
}

#endif
