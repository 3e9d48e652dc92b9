/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * The decision of the connect hooks, run on a "packet" that holds its arguments: cgroup hooks have no test run.
 * Returns what translate() says plus 1 (0 no backend, 1 left alone, 2 translated) and writes the backend behind
 * the arguments.
 */
#include "../connect.c"

#include <linux/pkt_cls.h>

struct call {
	__u8 frame[14];
	__u8 pad[2];
	__u32 random;
	__u64 cookie;
	struct service_key service;
	struct backend_value to;
};

SEC("tc")
int call_translate(struct __sk_buff *skb)
{
	struct call call = {};
	int result;

	if (bpf_skb_load_bytes(skb, 0, &call, sizeof(call)))
		return -1;
	result = translate(call.cookie, call.random, &call.service, &call.to);
	bpf_skb_store_bytes(skb, __builtin_offsetof(struct call, to), &call.to, sizeof(call.to), 0);
	return result + 1;
}
