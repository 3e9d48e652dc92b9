/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * A client may use a source port again while what is left of its last connection, which the proxy ended, is still in
 * TIME_WAIT here. A socket in that state takes a SYN only by way of the kernel itself, which looks for a listener on
 * the address that was dialled: find_listener names the proxy's, which listens elsewhere. (Assigned to a listener, the
 * SYN is dropped without a word: a request for the same addresses and ports cannot be kept beside that socket.)
 */
#include "conntrack.h"

#define LOOPBACK bpf_htonl(0x7f000001)
#define AF_INET 2
#define AF_INET6 10

/* By port, with the address family above it: one listener of each, by which the kernel finds its reuseport group. */
struct {
	__uint(type, BPF_MAP_TYPE_SOCKHASH);
	__type(key, __u32);
	__type(value, __u64);
	__uint(max_entries, MAX_LISTENERS * 2);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} listener_sockets SEC(".maps");

/* Fields of a context are read at offsets that the verifier knows: not by a pointer that the compiler made. */
#define read_field(to, from) \
	do {                             \
		__u32 read = from;           \
		asm volatile("" : "+r"(read)); \
		to = read;                   \
	} while (0)

static __always_inline int is_loopback(const struct bpf_sock_ops *ctx)
{
	__u32 v4, a, b, c, d;

	read_field(v4, ctx->local_ip4);
	read_field(a, ctx->local_ip6[0]);
	read_field(b, ctx->local_ip6[1]);
	read_field(c, ctx->local_ip6[2]);
	read_field(d, ctx->local_ip6[3]);
	return ctx->family == AF_INET ? v4 == LOOPBACK : !a && !b && !c && d == bpf_htonl(1);
}

/* cgroup v2 root: listeners on the loopback address of the node's own namespace. */
SEC("sockops")
int remember_listener(struct bpf_sock_ops *ctx)
{
	struct netns_value *ns;
	__u64 cookie;
	__u32 key;

	/* For what asks: the kernel's own choice. */
	ctx->reply = -1;
	if (ctx->op != BPF_SOCK_OPS_TCP_LISTEN_CB || !is_loopback(ctx))
		return 1;
	cookie = bpf_get_netns_cookie(ctx);
	ns = bpf_map_lookup_elem(&netns, &cookie);
	if (!ns || !(ns->flags & NETNS_HOST))
		return 1;
	key = ctx->local_port | ctx->family << 16;
	bpf_sock_hash_update(ctx, &listener_sockets, &key, BPF_ANY);
	return 1;
}

/* The node's network namespace: whenever a connection looks for a listener. */
SEC("sk_lookup")
int find_listener(struct bpf_sk_lookup *ctx)
{
	struct tuple t = {.protocol = IPPROTO_TCP};
	struct ct_value *ct;
	struct bpf_sock *sk;
	struct ct_key key;
	__u32 at, src4, dst4;
	int i;

	if (ctx->protocol != IPPROTO_TCP || ctx->sk)
		return SK_PASS;
	read_field(src4, ctx->remote_ip4);
	read_field(dst4, ctx->local_ip4);
#pragma unroll
	for (i = 0; i < 4; i++) {
		read_field(t.src.w[i], ctx->remote_ip6[i]);
		read_field(t.dst.w[i], ctx->local_ip6[i]);
	}
	if (ctx->family == AF_INET) {
		addr_from_v4(&t.src, src4);
		addr_from_v4(&t.dst, dst4);
	}
	t.sport = ctx->remote_port;
	t.dport = bpf_htons((__u16)ctx->local_port);
	ct_make_key(&key, &t);
	ct = bpf_map_lookup_elem(&conntrack, &key);
	if (!ct || ct->verdict != VERDICT_REDIRECT)
		return SK_PASS;
	at = bpf_ntohs(ct->proxy_port) | ctx->family << 16;
	sk = bpf_map_lookup_elem(&listener_sockets, &at);
	if (!sk)
		return SK_PASS;
	bpf_sk_assign(ctx, sk, 0);
	bpf_sk_release(sk);
	return SK_PASS;
}

char _license[] SEC("license") = "GPL";
