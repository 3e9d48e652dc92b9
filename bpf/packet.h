/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Packets as facts: addresses, ports, protocol; what an ICMP error speaks of; fragments. */
#ifndef PENSTOCK_PACKET_H
#define PENSTOCK_PACKET_H

#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/pkt_cls.h>

#include "maps.h"

#define TCP_FIN 0x01
#define TCP_SYN 0x02
#define TCP_RST 0x04
#define TCP_ACK 0x10

#define MAX_EXTENSION_HEADERS 4

struct tuple {
	union addr src;
	union addr dst;
	__be16 sport;
	__be16 dport;
	__u8 protocol;
};

struct packet {
	struct tuple t;
	__u8 ipv6;
	__u8 tcp_flags;
	__u8 icmp_error;
	__u8 hop_limit;
	/* The port that policy judges: the destination's, or the ICMP type (network byte order). */
	__be16 policy_port;
	/* Where the ports are; 0 in a fragment that has none. */
	__u16 l4;
	__u32 length;
};

enum parsed {
	PARSED = 0,
	PARSED_NOT_IP,
	/* IPv6 neighbour discovery and its like: link-local housekeeping. */
	PARSED_LINK,
	PARSED_MALFORMED,
	PARSED_NO_FIRST_FRAGMENT,
	PARSED_UNKNOWN_PROTOCOL,
};

static __always_inline void addr_from_v4(union addr *to, __be32 from)
{
	to->d[0] = 0;
	to->w[2] = bpf_htonl(0xffff);
	to->w[3] = from;
}

static __always_inline void addr_from_v6(union addr *to, const struct in6_addr *from)
{
	to->w[0] = from->s6_addr32[0];
	to->w[1] = from->s6_addr32[1];
	to->w[2] = from->s6_addr32[2];
	to->w[3] = from->s6_addr32[3];
}

static __always_inline int addr_equal(const union addr *a, const union addr *b)
{
	return a->d[0] == b->d[0] && a->d[1] == b->d[1];
}

/*
 * What no router passes on (RFC 4291, 2.5.6 and 2.7; RFC 4861, 7.1: a hop limit of 255 was never forwarded).
 * All else that looks like neighbour discovery is a message like any other, and judged.
 */
static __always_inline int on_link(const union addr *addr)
{
	__u32 head = bpf_ntohl(addr->w[0]);

	return (head & 0xff0f0000) == 0xff020000 || (head & 0xff0f0000) == 0xff010000 ||
	       (head & 0xffc00000) == 0xfe800000;
}

static __always_inline int stays_on_link(const struct packet *p)
{
	return p->hop_limit == 255 || on_link(&p->t.dst);
}

/*
 * What stands for the ports of an ICMP message, so that an answer is the reverse of what it answers. An echo has its
 * identifier on both sides; all else has the type of the question and what is no type, and so never is an echo's flow
 * nor that of another type: each is judged by its own. (RFC 792: 13 to 18 are questions and their answers.)
 */
#define ICMP_NO_TYPE bpf_htons(0xffff)

static __always_inline void icmp_ports(struct tuple *t, __u8 type, __be16 identifier)
{
	int v4 = t->protocol == IPPROTO_ICMP;

	if (v4 ? type == 0 || type == 8 : type == 128 || type == 129) {
		t->sport = t->dport = identifier;
	} else if (v4 && (type == 14 || type == 16 || type == 18)) {
		t->sport = ICMP_NO_TYPE;
		t->dport = bpf_htons(type - 1);
	} else {
		t->sport = bpf_htons(type);
		t->dport = ICMP_NO_TYPE;
	}
}

/* Ports of TCP, UDP and SCTP at `offset`; of ICMP what stands for them. */
static __always_inline int parse_l4(struct __sk_buff *skb, __u32 offset, struct packet *p)
{
	p->l4 = offset;
	switch (p->t.protocol) {
	case IPPROTO_TCP: {
		/* Source, destination, …, flags in byte 13. */
		__u8 head[14];

		if (bpf_skb_load_bytes(skb, offset, head, sizeof(head)))
			return PARSED_MALFORMED;
		p->t.sport = *(__be16 *)&head[0];
		p->t.dport = *(__be16 *)&head[2];
		p->tcp_flags = head[13];
		p->policy_port = p->t.dport;
		return PARSED;
	}
	case IPPROTO_UDP:
	case IPPROTO_SCTP: {
		__be16 ports[2];

		if (bpf_skb_load_bytes(skb, offset, ports, sizeof(ports)))
			return PARSED_MALFORMED;
		p->t.sport = ports[0];
		p->t.dport = ports[1];
		p->policy_port = p->t.dport;
		return PARSED;
	}
	case IPPROTO_ICMP:
	case IPPROTO_ICMPV6: {
		__u8 head[8];
		__u8 type;

		if (bpf_skb_load_bytes(skb, offset, head, sizeof(head)))
			return PARSED_MALFORMED;
		type = head[0];
		p->policy_port = bpf_htons(type);
		if (p->ipv6) {
			/* RFC 4861: 133-137; MLD (RFC 2710, 3810): 130-132 and 143. */
			if (((type >= 130 && type <= 137) || type == 143) && stays_on_link(p))
				return PARSED_LINK;
			p->icmp_error = type < 128;
		} else {
			/* RFC 792: unreachable, source quench, redirect, time exceeded, parameter problem. */
			p->icmp_error = type == 3 || type == 4 || type == 5 || type == 11 || type == 12;
		}
		icmp_ports(&p->t, type, *(__be16 *)&head[4]);
		return PARSED;
	}
	}
	return PARSED_UNKNOWN_PROTOCOL;
}

static __always_inline int parse_fragment(struct __sk_buff *skb, __u32 offset, struct packet *p, __u32 id, int first)
{
	struct fragment_key key = {.src = p->t.src, .dst = p->t.dst, .id = id, .protocol = p->t.protocol};
	struct fragment_value value, *known;
	int err;

	if (first) {
		err = parse_l4(skb, offset, p);
		if (err)
			return err;
		value.sport = p->t.sport;
		value.dport = p->policy_port;
		bpf_map_update_elem(&fragments, &key, &value, BPF_ANY);
		return PARSED;
	}
	known = bpf_map_lookup_elem(&fragments, &key);
	if (!known)
		return PARSED_NO_FIRST_FRAGMENT;
	p->t.sport = known->sport;
	p->policy_port = known->dport;
	p->t.dport = p->policy_port;
	if (p->t.protocol == IPPROTO_ICMP || p->t.protocol == IPPROTO_ICMPV6)
		icmp_ports(&p->t, bpf_ntohs(p->policy_port), p->t.sport);
	p->tcp_flags = TCP_ACK;
	return PARSED;
}

static __always_inline int parse_v4(struct __sk_buff *skb, __u32 offset, struct packet *p)
{
	struct iphdr ip;
	__u16 fragment;

	if (bpf_skb_load_bytes(skb, offset, &ip, sizeof(ip)))
		return PARSED_MALFORMED;
	if (ip.version != 4 || ip.ihl < 5)
		return PARSED_MALFORMED;
	addr_from_v4(&p->t.src, ip.saddr);
	addr_from_v4(&p->t.dst, ip.daddr);
	p->t.protocol = ip.protocol;
	offset += ip.ihl * 4;
	fragment = bpf_ntohs(ip.frag_off) & 0x3fff;
	if (fragment)
		return parse_fragment(skb, offset, p, ip.id, !(fragment & 0x1fff));
	return parse_l4(skb, offset, p);
}

static __always_inline int parse_v6(struct __sk_buff *skb, __u32 offset, struct packet *p)
{
	struct ipv6hdr ip;
	__u8 next;
	int i;

	if (bpf_skb_load_bytes(skb, offset, &ip, sizeof(ip)))
		return PARSED_MALFORMED;
	if (ip.version != 6)
		return PARSED_MALFORMED;
	p->ipv6 = 1;
	p->hop_limit = ip.hop_limit;
	addr_from_v6(&p->t.src, &ip.saddr);
	addr_from_v6(&p->t.dst, &ip.daddr);
	next = ip.nexthdr;
	offset += sizeof(ip);

	/* RFC 8200, 4: hop-by-hop, routing, destination options, fragment. */
#pragma unroll
	for (i = 0; i < MAX_EXTENSION_HEADERS; i++) {
		__u8 head[8];

		if (next != 0 && next != 43 && next != 60 && next != 44)
			break;
		if (bpf_skb_load_bytes(skb, offset, head, sizeof(head)))
			return PARSED_MALFORMED;
		if (next == 44) {
			__u16 place = bpf_ntohs(*(__be16 *)&head[2]);

			p->t.protocol = head[0];
			/* A single "atomic" fragment (RFC 6946) is a whole packet. */
			if (place & 0xfff9)
				return parse_fragment(skb, offset + 8, p, *(__u32 *)&head[4], !(place & 0xfff8));
			next = head[0];
			offset += 8;
			continue;
		}
		next = head[0];
		offset += ((__u32)head[1] + 1) * 8;
	}
	p->t.protocol = next;
	return parse_l4(skb, offset, p);
}

/*
 * Global functions (not static) the verifier looks at once each, not again on every way that leads to them: parse()
 * and judge(), of which everything else is made up, would otherwise cost seconds at each load.
 */
__noinline int parse(struct __sk_buff *skb, struct packet *p)
{
	if (!p)
		return PARSED_MALFORMED;
	__builtin_memset(p, 0, sizeof(*p));
	p->length = skb->len;
	if (skb->protocol == bpf_htons(ETH_P_IP))
		return parse_v4(skb, ETH_HLEN, p);
	if (skb->protocol == bpf_htons(ETH_P_IPV6))
		return parse_v6(skb, ETH_HLEN, p);
	return PARSED_NOT_IP;
}

/* The tuple of the packet that an ICMP error quotes (RFC 792; RFC 4443, 3). 0 on success. */
static __always_inline int parse_quoted(struct __sk_buff *skb, const struct packet *p, struct tuple *t)
{
	__u32 offset = ETH_HLEN;
	__be16 ports[2];

	__builtin_memset(t, 0, sizeof(*t));
	if (p->ipv6) {
		struct ipv6hdr ip;

		offset += sizeof(struct ipv6hdr) + 8;
		if (bpf_skb_load_bytes(skb, offset, &ip, sizeof(ip)))
			return -1;
		addr_from_v6(&t->src, &ip.saddr);
		addr_from_v6(&t->dst, &ip.daddr);
		t->protocol = ip.nexthdr;
		offset += sizeof(ip);
	} else {
		struct iphdr ip;
		__u8 first;

		if (bpf_skb_load_bytes(skb, offset, &first, 1))
			return -1;
		offset += (first & 0xf) * 4 + 8;
		if (bpf_skb_load_bytes(skb, offset, &ip, sizeof(ip)))
			return -1;
		addr_from_v4(&t->src, ip.saddr);
		addr_from_v4(&t->dst, ip.daddr);
		t->protocol = ip.protocol;
		offset += ip.ihl * 4;
	}
	if (t->protocol == IPPROTO_ICMP || t->protocol == IPPROTO_ICMPV6) {
		__u8 head[6];

		if (bpf_skb_load_bytes(skb, offset, head, sizeof(head)))
			return -1;
		icmp_ports(t, head[0], *(__be16 *)&head[4]);
		return 0;
	}
	if (bpf_skb_load_bytes(skb, offset, ports, sizeof(ports)))
		return -1;
	t->sport = ports[0];
	t->dport = ports[1];
	return 0;
}

#endif
