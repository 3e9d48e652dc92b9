/* Test-only steering: what the kernel programs of Penstock do, for a handful of fixed rules.
 *
 * RULES is given at compile time: RULE(family, source or 0, destination, port, from a proxy port?, proxy port) each.
 * An established connection of Envoy's gets its own packets; a new one goes to the listener of its rule.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/pkt_cls.h>
#include <linux/tcp.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#define STEERED 0x200
#define TCP_TIME_WAIT 6
#define TCP_LISTEN 10

struct packet {
	struct bpf_sock_tuple tuple;
	__u32 saddr, daddr; /* the last four bytes */
	__u16 sport, dport;
	__u8 family;
};

static __always_inline int parse(struct __sk_buff *skb, struct packet *p)
{
	__u32 offset = ETH_HLEN;
	__u8 protocol;
	__be16 ports[2];

	if (skb->protocol == bpf_htons(ETH_P_IP)) {
		if (bpf_skb_load_bytes(skb, offset + 9, &protocol, 1))
			return -1;
		bpf_skb_load_bytes(skb, offset + 12, &p->tuple.ipv4.saddr, 4);
		bpf_skb_load_bytes(skb, offset + 16, &p->tuple.ipv4.daddr, 4);
		offset += 20;
		if (bpf_skb_load_bytes(skb, offset, ports, 4))
			return -1;
		p->tuple.ipv4.sport = ports[0];
		p->tuple.ipv4.dport = ports[1];
		p->saddr = bpf_ntohl(p->tuple.ipv4.saddr);
		p->daddr = bpf_ntohl(p->tuple.ipv4.daddr);
		p->family = 4;
	} else if (skb->protocol == bpf_htons(ETH_P_IPV6)) {
		if (bpf_skb_load_bytes(skb, offset + 6, &protocol, 1))
			return -1;
		bpf_skb_load_bytes(skb, offset + 8, &p->tuple.ipv6.saddr, 16);
		bpf_skb_load_bytes(skb, offset + 24, &p->tuple.ipv6.daddr, 16);
		offset += 40;
		if (bpf_skb_load_bytes(skb, offset, ports, 4))
			return -1;
		p->tuple.ipv6.sport = ports[0];
		p->tuple.ipv6.dport = ports[1];
		p->saddr = bpf_ntohl(p->tuple.ipv6.saddr[3]);
		p->daddr = bpf_ntohl(p->tuple.ipv6.daddr[3]);
		p->family = 6;
	} else {
		return -1;
	}
	p->sport = bpf_ntohs(ports[0]);
	p->dport = bpf_ntohs(ports[1]);
	return protocol == IPPROTO_TCP ? 0 : -1;
}

static __always_inline __u16 proxy_port(const struct packet *p)
{
	int proxied = p->sport >= 20000 && p->sport <= 31999;

#define RULE(f, source, destination, port, from_proxy, to)                            \
	if (p->family == f && (source == 0 || p->saddr == source) && p->daddr == destination && \
	    p->dport == port && proxied == from_proxy)                                    \
		return to;
	RULES
	return 0;
}

static __always_inline struct bpf_sock *lookup(struct __sk_buff *skb, struct packet *p)
{
	if (p->family == 4)
		return bpf_skc_lookup_tcp(skb, &p->tuple, sizeof(p->tuple.ipv4), BPF_F_CURRENT_NETNS, 0);
	return bpf_skc_lookup_tcp(skb, &p->tuple, sizeof(p->tuple.ipv6), BPF_F_CURRENT_NETNS, 0);
}

SEC("tc")
int steer(struct __sk_buff *skb)
{
	struct packet p = {};
	struct bpf_sock *sk;
	__u16 to;

	if (parse(skb, &p))
		return TC_ACT_OK;
	sk = lookup(skb, &p);
	if (sk) {
		if (sk->state != TCP_LISTEN && sk->state != TCP_TIME_WAIT)
			goto assign;
		bpf_sk_release(sk);
	}
	to = proxy_port(&p);
	if (!to)
		return TC_ACT_OK;
	if (p.family == 4) {
		p.tuple.ipv4.daddr = bpf_htonl(0x7f000001);
		p.tuple.ipv4.dport = bpf_htons(to);
	} else {
		p.tuple.ipv6.daddr[0] = 0;
		p.tuple.ipv6.daddr[1] = 0;
		p.tuple.ipv6.daddr[2] = 0;
		p.tuple.ipv6.daddr[3] = bpf_htonl(1);
		p.tuple.ipv6.dport = bpf_htons(to);
	}
	sk = lookup(skb, &p);
	if (!sk)
		return TC_ACT_SHOT;
	if (sk->state != TCP_LISTEN) {
		bpf_sk_release(sk);
		return TC_ACT_SHOT;
	}
assign:
	bpf_sk_assign(skb, sk, 0);
	bpf_sk_release(sk);
	skb->mark = STEERED;
	return TC_ACT_OK;
}

char _license[] SEC("license") = "Dual BSD/GPL";
