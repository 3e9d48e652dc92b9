/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * Service translation where a socket names its peer (cgroup v2 root): once per connection, and no packet is
 * rewritten. Only network namespaces that we know are touched. A Service with a route is left alone for
 * workloads: its packets must still carry the virtual address. The node's own processes are translated
 * always, since no tc hook sees what they send.
 */
#include "service.h"

#include <linux/errno.h>
#include <linux/in.h>
#include <linux/in6.h>

/* asm-generic/socket.h */
#define SOL_SOCKET 1
#define SO_MARK 36

/* The decision itself, apart from its hooks, so that a test can run it (cgroup hooks have no test run). */
static __always_inline int translate(__u64 cookie, __u32 random, const struct service_key *service,
				     struct backend_value *to)
{
	struct netns_value *ns = bpf_map_lookup_elem(&netns, &cookie);
	struct choice of = {};
	union addr client = {};
	struct service_value *s;

	if (!ns)
		return 0;
	s = bpf_map_lookup_elem(&services, service);
	if (!s || s->flags & SERVICE_GATEWAY)
		return 0;
	of.service = s->id;
	of.backends = s->backends;
	of.flags = s->flags;
	of.affinity = s->affinity;
	if (s->flags & SERVICE_HTTP && !(ns->flags & NETNS_HOST)) {
		if (!(s->flags & SERVICE_EXTERNAL))
			return 0;
		/* The route is told by the Service's own address. */
		of.service = s->alias;
		of.backends = 1;
		of.flags = 0;
		of.affinity = 0;
	}
	/* No address of a client begins like this (RFC 4291, 2.7: multicast). */
	client.w[0] = 0xffffffff;
	client.d[1] = cookie;
	return choose(&of, &client, random, to) ? -1 : 1;
}

static __always_inline void count_one(__u32 reason)
{
	struct counter *c = bpf_map_lookup_elem(&counters, &reason);

	if (c)
		c->packets++;
}

/*
 * docker-proxy dials a container in the node's name for whoever dialled a published port: what it brings is the
 * world's, or a workload could reach its neighbours as the host. A process that takes that name loses by it.
 */
static __always_inline void mark_proxies_of_others(struct bpf_sock_addr *ctx)
{
	__u64 cookie = bpf_get_netns_cookie(ctx);
	struct netns_value *ns = bpf_map_lookup_elem(&netns, &cookie);
	const char name[] = "docker-proxy";
	int mark = MARK_FOR_OTHERS, i;
	char comm[16];

	if (!ns || !(ns->flags & NETNS_HOST) || bpf_get_current_comm(comm, sizeof(comm)))
		return;
#pragma unroll
	for (i = 0; i < (int)sizeof(name); i++)
		if (comm[i] != name[i])
			return;
	bpf_setsockopt(ctx, SOL_SOCKET, SO_MARK, &mark, sizeof(mark));
}

static __always_inline int go(struct bpf_sock_addr *ctx, struct service_key *service, struct backend_value *to)
{
	struct translated_key key = {};
	struct translated_value was = {};
	__u32 random;
	int result;

	mark_proxies_of_others(ctx);
	service->port = (__be16)ctx->user_port;
	service->protocol = ctx->protocol;
	/* The datagrams of one socket stay together: each of them may pass here. */
	random = ctx->protocol == IPPROTO_TCP ? bpf_get_prandom_u32() : mix(bpf_get_socket_cookie(ctx));
	result = translate(bpf_get_netns_cookie(ctx), random, service, to);
	if (result < 0) {
		count_one(NO_BACKEND);
		/* Without it the application would be told that it may not, instead of that nobody is there. */
		bpf_set_retval(-ECONNREFUSED);
		return -1;
	}
	if (!result)
		return 0;
	key.cookie = bpf_get_socket_cookie(ctx);
	key.addr = to->addr;
	key.port = to->port;
	was.addr = service->addr;
	was.port = service->port;
	bpf_map_update_elem(&translated, &key, &was, BPF_ANY);
	ctx->user_port = to->port;
	count_one(TRANSLATED);
	return 1;
}

static __always_inline int forward4(struct bpf_sock_addr *ctx)
{
	struct service_key service = {};
	struct backend_value to;
	int result;

	service.addr.w[2] = bpf_htonl(0xffff);
	service.addr.w[3] = ctx->user_ip4;
	result = go(ctx, &service, &to);
	if (result > 0)
		ctx->user_ip4 = to.addr.w[3];
	return result >= 0;
}

static __always_inline int forward6(struct bpf_sock_addr *ctx)
{
	struct service_key service = {};
	struct backend_value to;
	int result;

	service.addr.w[0] = ctx->user_ip6[0];
	service.addr.w[1] = ctx->user_ip6[1];
	service.addr.w[2] = ctx->user_ip6[2];
	service.addr.w[3] = ctx->user_ip6[3];
	result = go(ctx, &service, &to);
	if (result > 0) {
		ctx->user_ip6[0] = to.addr.w[0];
		ctx->user_ip6[1] = to.addr.w[1];
		ctx->user_ip6[2] = to.addr.w[2];
		ctx->user_ip6[3] = to.addr.w[3];
	}
	return result >= 0;
}

/* What the application believes it speaks to. */
static __always_inline struct translated_value *believed(struct bpf_sock_addr *ctx, struct translated_key *key)
{
	key->cookie = bpf_get_socket_cookie(ctx);
	key->port = (__be16)ctx->user_port;
	return bpf_map_lookup_elem(&translated, key);
}

static __always_inline int back4(struct bpf_sock_addr *ctx)
{
	struct translated_key key = {};
	struct translated_value *was;

	key.addr.w[2] = bpf_htonl(0xffff);
	key.addr.w[3] = ctx->user_ip4;
	was = believed(ctx, &key);
	if (was) {
		ctx->user_ip4 = was->addr.w[3];
		ctx->user_port = was->port;
	}
	return 1;
}

static __always_inline int back6(struct bpf_sock_addr *ctx)
{
	struct translated_key key = {};
	struct translated_value *was;

	key.addr.w[0] = ctx->user_ip6[0];
	key.addr.w[1] = ctx->user_ip6[1];
	key.addr.w[2] = ctx->user_ip6[2];
	key.addr.w[3] = ctx->user_ip6[3];
	was = believed(ctx, &key);
	if (was) {
		ctx->user_ip6[0] = was->addr.w[0];
		ctx->user_ip6[1] = was->addr.w[1];
		ctx->user_ip6[2] = was->addr.w[2];
		ctx->user_ip6[3] = was->addr.w[3];
		ctx->user_port = was->port;
	}
	return 1;
}

/*
 * What the proxy sends for Gateways leaves from the node's ingress address, by which policy knows it. Streams are bound
 * by the proxy itself; of datagrams it cannot say where they leave from, and they must not pass as the node's own.
 */
static __always_inline int of_proxy(struct bpf_sock_addr *ctx)
{
	__u64 cookie = bpf_get_netns_cookie(ctx);
	struct netns_value *ns;

	if ((__u32)bpf_get_current_uid_gid() != PROXY_UID)
		return 0;
	ns = bpf_map_lookup_elem(&netns, &cookie);
	return ns && ns->flags & NETNS_HOST;
}

/*
 * A workload takes nothing from its own address (RFC 1812, 5.3.7): where the proxy has borrowed it and the endpoint
 * that it chose is the client, it calls from one that nobody has.
 */
static __always_inline int calls_itself4(struct bpf_sock_addr *ctx)
{
	struct bpf_sock *sk = ctx->sk;

	return sk && ctx->user_ip4 && sk->src_ip4 == ctx->user_ip4;
}

static __always_inline int calls_itself6(struct bpf_sock_addr *ctx)
{
	struct bpf_sock *sk = ctx->sk;

	return sk && ctx->user_ip6[0] && sk->src_ip6[0] == ctx->user_ip6[0] && sk->src_ip6[1] == ctx->user_ip6[1] &&
	       sk->src_ip6[2] == ctx->user_ip6[2] && sk->src_ip6[3] == ctx->user_ip6[3];
}

static __always_inline int begin4(struct bpf_sock_addr *ctx)
{
	struct backend_key key = {.service = PROXY_SOURCES, .slot = 4};
	struct sockaddr_in from = {.sin_family = 2};
	struct backend_value *source;

	if (!of_proxy(ctx))
		return forward4(ctx);
	if (ctx->protocol == IPPROTO_UDP) {
		source = bpf_map_lookup_elem(&backends, &key);
		if (!source)
			return 0;
		from.sin_addr.s_addr = source->addr.w[3];
	} else if (calls_itself4(ctx)) {
		from.sin_addr.s_addr = bpf_htonl(ITSELF4);
	} else {
		return forward4(ctx);
	}
	if (bpf_bind(ctx, (struct sockaddr *)&from, sizeof(from)))
		return 0;
	return forward4(ctx);
}

static __always_inline int begin6(struct bpf_sock_addr *ctx)
{
	struct backend_key key = {.service = PROXY_SOURCES, .slot = 6};
	struct sockaddr_in6 from = {.sin6_family = 10};
	const __u32 itself[4] = ITSELF6;
	struct backend_value *source;

	if (!of_proxy(ctx))
		return forward6(ctx);
	if (ctx->protocol == IPPROTO_UDP) {
		source = bpf_map_lookup_elem(&backends, &key);
		if (!source)
			return 0;
		from.sin6_addr.s6_addr32[0] = source->addr.w[0];
		from.sin6_addr.s6_addr32[1] = source->addr.w[1];
		from.sin6_addr.s6_addr32[2] = source->addr.w[2];
		from.sin6_addr.s6_addr32[3] = source->addr.w[3];
	} else if (calls_itself6(ctx)) {
		from.sin6_addr.s6_addr32[0] = bpf_htonl(itself[0]);
		from.sin6_addr.s6_addr32[1] = bpf_htonl(itself[1]);
		from.sin6_addr.s6_addr32[2] = bpf_htonl(itself[2]);
		from.sin6_addr.s6_addr32[3] = bpf_htonl(itself[3]);
	} else {
		return forward6(ctx);
	}
	if (bpf_bind(ctx, (struct sockaddr *)&from, sizeof(from)))
		return 0;
	return forward6(ctx);
}

#define CGROUP_PROGRAM(NAME, SECTION, DOES)                  \
	SEC(SECTION) int NAME(struct bpf_sock_addr *ctx)      \
	{                                                     \
		return DOES(ctx);                             \
	}

CGROUP_PROGRAM(connect4, "cgroup/connect4", begin4)
CGROUP_PROGRAM(connect6, "cgroup/connect6", begin6)
CGROUP_PROGRAM(sendmsg4, "cgroup/sendmsg4", forward4)
CGROUP_PROGRAM(sendmsg6, "cgroup/sendmsg6", forward6)
CGROUP_PROGRAM(recvmsg4, "cgroup/recvmsg4", back4)
CGROUP_PROGRAM(recvmsg6, "cgroup/recvmsg6", back6)
CGROUP_PROGRAM(getpeername4, "cgroup/getpeername4", back4)
CGROUP_PROGRAM(getpeername6, "cgroup/getpeername6", back6)

char _license[] SEC("license") = "GPL";
