/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * Handing a packet to one of the proxy's sockets: its own established one, or the listener of its class. What is not
 * inlined here and in judge.h and icmp.h has its frame to itself: a program's 512 bytes of stack hold them one after the other.
 */
#ifndef PENSTOCK_PROXY_H
#define PENSTOCK_PROXY_H

#include "events.h"

#define TCP_STATE_TIME_WAIT 6
#define TCP_STATE_LISTEN 10

static __always_inline void socket_tuple(struct bpf_sock_tuple *to, const struct packet *p, const struct tuple *t)
{
	if (!p->ipv6) {
		to->ipv4.saddr = t->src.w[3];
		to->ipv4.daddr = t->dst.w[3];
		to->ipv4.sport = t->sport;
		to->ipv4.dport = t->dport;
		return;
	}
	__builtin_memcpy(to->ipv6.saddr, t->src.w, sizeof(to->ipv6.saddr));
	__builtin_memcpy(to->ipv6.daddr, t->dst.w, sizeof(to->ipv6.daddr));
	to->ipv6.sport = t->sport;
	to->ipv6.dport = t->dport;
}

static __always_inline struct bpf_sock *lookup_tcp(struct __sk_buff *skb, const struct packet *p, const struct tuple *t)
{
	struct bpf_sock_tuple tuple = {};

	socket_tuple(&tuple, p, t);
	if (p->ipv6)
		return bpf_skc_lookup_tcp(skb, &tuple, sizeof(tuple.ipv6), BPF_F_CURRENT_NETNS, 0);
	return bpf_skc_lookup_tcp(skb, &tuple, sizeof(tuple.ipv4), BPF_F_CURRENT_NETNS, 0);
}

/* The state of this namespace's socket for a connection (enum bpf_tcp_state), 0 without one. */
static __noinline int socket_state(struct __sk_buff *skb, const struct packet *p, const struct tuple *t)
{
	struct bpf_sock *sk = lookup_tcp(skb, p, t);
	int state;

	if (!sk)
		return 0;
	state = sk->state;
	bpf_sk_release(sk);
	return state;
}

/*
 * 0 when the packet goes to the proxy's socket for exactly this connection. One in TIME_WAIT the kernel finds for
 * itself, and only so does it do all that such a socket has to (see sockets.c).
 */
static __noinline int assign_own(struct __sk_buff *skb, const struct packet *p)
{
	struct bpf_sock *sk = lookup_tcp(skb, p, &p->t);
	int err = -1;

	if (!sk)
		return -1;
	if (sk->state == TCP_STATE_TIME_WAIT)
		err = 0;
	else if (sk->state != TCP_STATE_LISTEN)
		err = bpf_sk_assign(skb, sk, 0);
	bpf_sk_release(sk);
	if (!err)
		skb->mark = (skb->mark & ~MARK_MASK) | MARK_TO_PROXY;
	return err;
}

/*
 * 0 when the packet now belongs to the listener on the loopback port. The kernel chooses again among
 * the listener's reuseport sockets by the packet's own hash (since 6.6). A segment in mid-connection that
 * no socket owns meets the listener too, which answers with a reset: how a direct connection ends that
 * a rule now names. A SYN that meets TIME_WAIT goes by way of that socket (see sockets.c).
 */
static __noinline int assign_listener(struct __sk_buff *skb, const struct packet *p, __be16 port)
{
	struct tuple t = {.dport = port, .protocol = IPPROTO_TCP};
	struct bpf_sock *sk;
	int err = -1;

	if (p->ipv6)
		t.dst.w[3] = bpf_htonl(1);
	else
		t.dst.w[3] = bpf_htonl(0x7f000001);
	sk = lookup_tcp(skb, p, &t);
	if (!sk)
		return -1;
	if (sk->state == TCP_STATE_LISTEN) {
		if (p->tcp_flags & TCP_SYN && socket_state(skb, p, &p->t) == TCP_STATE_TIME_WAIT)
			err = 0;
		else
			err = bpf_sk_assign(skb, sk, 0);
	}
	bpf_sk_release(sk);
	if (!err)
		skb->mark = (skb->mark & ~MARK_MASK) | MARK_TO_PROXY;
	return err;
}

static __always_inline struct bpf_sock *lookup_udp(struct __sk_buff *skb, const struct packet *p, const struct tuple *t)
{
	struct bpf_sock_tuple tuple = {};

	socket_tuple(&tuple, p, t);
	if (p->ipv6)
		return bpf_sk_lookup_udp(skb, &tuple, sizeof(tuple.ipv6), BPF_F_CURRENT_NETNS, 0);
	return bpf_sk_lookup_udp(skb, &tuple, sizeof(tuple.ipv4), BPF_F_CURRENT_NETNS, 0);
}

/* 0 when the datagram is the DNS proxy's: its socket on the loopback port. With `find` it is only looked for. */
static __noinline int assign_datagram(struct __sk_buff *skb, const struct packet *p, __be16 port, int find)
{
	struct tuple t = {.dport = port, .protocol = IPPROTO_UDP};
	struct bpf_sock *sk;
	int err = 0;

	/* Put together again it would be looked for by its own address, and be somebody else's. */
	if (!p->l4)
		return -1;
	t.dst.w[3] = p->ipv6 ? bpf_htonl(1) : bpf_htonl(0x7f000001);
	sk = lookup_udp(skb, p, &t);
	if (!sk)
		return -1;
	/* A wildcard socket would be found too. */
	if (sk->src_port != bpf_ntohs(port) || (p->ipv6 ? sk->src_ip6[3] != t.dst.w[3] : sk->src_ip4 != t.dst.w[3]))
		err = -1;
	else if (!find)
		err = bpf_sk_assign(skb, sk, 0);
	bpf_sk_release(sk);
	if (!err && !find)
		skb->mark = (skb->mark & ~MARK_MASK) | MARK_TO_PROXY;
	return err;
}

#define UDP_STATE_CONNECTED 1

/* 0 when a datagram answers the DNS proxy: a connected socket with its mark. With `find` it is only looked for. */
static __noinline __attribute__((unused)) int assign_answer(struct __sk_buff *skb, const struct packet *p, int find)
{
	struct bpf_sock *sk = lookup_udp(skb, p, &p->t);
	int err = -1;

	if (!sk)
		return -1;
	if (sk->state == UDP_STATE_CONNECTED && (sk->mark & MARK_MASK) == MARK_PROXY_UPSTREAM)
		err = find ? 0 : bpf_sk_assign(skb, sk, 0);
	bpf_sk_release(sk);
	if (!err && !find)
		skb->mark = (skb->mark & ~MARK_MASK) | MARK_TO_PROXY;
	return err;
}

/*
 * 0 when the frame is on its way up the bridge that `skb` came in by a port of, to be given there to the listener on
 * `port`, or with 0 to the proxy's own socket: a socket that is assigned on a port is lost on the way through the
 * bridge and br_netfilter. The bridge passes up what bears its own address.
 */
static __noinline int raise(struct __sk_buff *skb, __be16 port)
{
	__u32 ifindex = skb->ifindex;
	struct port *at = bpf_map_lookup_elem(&ports, &ifindex);

	if (!at || !at->bridge || bpf_skb_store_bytes(skb, 0, at->bridge_mac, sizeof(at->bridge_mac), 0))
		return -1;
	skb->priority = bpf_ntohs(port);
	skb->mark = (skb->mark & ~MARK_MASK) | MARK_STEERED;
	return 0;
}

static __noinline int raise_to_own(struct __sk_buff *skb, const struct packet *p)
{
	int state = socket_state(skb, p, &p->t);

	if (!state || state == TCP_STATE_LISTEN)
		return -1;
	return raise(skb, 0);
}

static __noinline int raise_to_listener(struct __sk_buff *skb, const struct packet *p, __be16 port)
{
	struct tuple t = {.dport = port, .protocol = IPPROTO_TCP};

	t.dst.w[3] = p->ipv6 ? bpf_htonl(1) : bpf_htonl(0x7f000001);
	if (socket_state(skb, p, &t) != TCP_STATE_LISTEN)
		return -1;
	return raise(skb, port);
}

/* Where a packet came in. `here` stands for the workload that speaks there (0: none of ours). */
struct way {
	__u32 here;
	__u8 hook;
	__u8 bridged;
};

static __always_inline int to_own(struct __sk_buff *skb, const struct packet *p, struct way w)
{
	return w.bridged ? raise_to_own(skb, p) : assign_own(skb, p);
}

static __always_inline int to_listener(struct __sk_buff *skb, const struct packet *p, __be16 port, struct way w)
{
	return w.bridged ? raise_to_listener(skb, p, port) : assign_listener(skb, p, port);
}

static __always_inline int to_datagrams(struct __sk_buff *skb, const struct packet *p, __be16 port, struct way w)
{
	if (!w.bridged)
		return assign_datagram(skb, p, port, 0);
	return assign_datagram(skb, p, port, 1) ? -1 : raise(skb, port);
}

static __always_inline int in_proxy_range(const struct config *c, __be16 port)
{
	__u16 p = bpf_ntohs(port);

	return p >= c->proxy_source_min && p <= c->proxy_source_max;
}

#endif
