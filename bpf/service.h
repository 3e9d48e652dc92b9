/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * Choosing a backend of a Service: the client's last one if it stays with it (session affinity), else by a hash, over
 * Maglev's table or over all of them. Shared by the connect hooks and by what is translated packet by packet.
 */
#ifndef PENSTOCK_SERVICE_H
#define PENSTOCK_SERVICE_H

#include "maps.h"

#define NS_PER_S 1000000000ULL

struct choice {
	__u32 service;
	__u32 backends;
	__u32 flags;
	__u32 affinity;
};

/* The finalizer of MurmurHash3 (public domain): neighbouring numbers come out far apart. */
static __always_inline __u32 mix(__u64 h)
{
	h ^= h >> 33;
	h *= 0xff51afd7ed558ccdULL;
	h ^= h >> 33;
	h *= 0xc4ceb9fe1a85ec53ULL;
	h ^= h >> 33;
	return (__u32)h;
}

/* Keys and values, apart from the 512 bytes of stack. */
struct choice_room {
	struct standing_key standing;
	struct affinity_key sticky;
	struct affinity_value fresh;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__type(key, __u32);
	__type(value, struct choice_room);
	__uint(max_entries, 1);
} choice_rooms SEC(".maps");

/* STANDING_…, 0 if the backend is not behind the set any more. */
static __always_inline __u32 stands(struct choice_room *r, __u32 service, const struct backend_value *backend)
{
	__u32 *found;

	r->standing.service = service;
	r->standing.addr = backend->addr;
	r->standing.port = backend->port;
	r->standing.pad[0] = r->standing.pad[1] = 0;
	found = bpf_map_lookup_elem(&standing, &r->standing);
	return found ? *found : 0;
}

/* 0 with a backend in `to`, -1 if there is none. */
static __noinline int choose(const struct choice *of, const union addr *client, __u32 hash, struct backend_value *to)
{
	__u32 zero = 0;
	struct choice_room *r = bpf_map_lookup_elem(&choice_rooms, &zero);
	struct affinity_value *last;
	struct backend_key key = {.service = of->service};
	struct backend_value *backend = NULL;
	struct maglev_value *table;
	__u64 now = 0;

	if (!r || !of->backends)
		return -1;
	if (of->affinity) {
		now = bpf_ktime_get_ns();
		r->sticky.service = of->service;
		r->sticky.client = *client;
		last = bpf_map_lookup_elem(&affinity, &r->sticky);
		if (last && now - last->seen < of->affinity * NS_PER_S &&
		    stands(r, of->service, &last->to) == STANDING_READY) {
			last->seen = now;
			*to = last->to;
			return 0;
		}
	}
	if (of->flags & SERVICE_MAGLEV) {
		table = bpf_map_lookup_elem(&maglev, &of->service);
		if (table && table->size) {
			__u32 place = hash % table->size;

			if (place < MAGLEV_SLOTS) {
				key.slot = table->slot[place];
				backend = bpf_map_lookup_elem(&backends, &key);
			}
		}
	}
	if (!backend) {
		key.slot = hash % of->backends;
		backend = bpf_map_lookup_elem(&backends, &key);
	}
	if (!backend)
		return -1;
	*to = *backend;
	if (of->affinity) {
		r->fresh.seen = now;
		r->fresh.to = *to;
		bpf_map_update_elem(&affinity, &r->sticky, &r->fresh, BPF_ANY);
	}
	return 0;
}

#endif
