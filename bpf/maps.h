/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* The maps. Every object names them all the same way; pinning makes them one. */
#ifndef PENSTOCK_MAPS_H
#define PENSTOCK_MAPS_H

#include "penstock.h"

#define MAX_ENDPOINTS 16384
#define MAX_IPCACHE 131072
#define MAX_POLICY 262144
#define MAX_PORT_MODES 16384
#define MAX_LISTENERS 8192
#define MAX_SERVICES 65536
#define MAX_BACKENDS 262144
#define MAX_CT 262144
#define MAX_PORTS 16384
#define MAX_NAMES 131072
#define MAX_BOTH_NAMES 16384
#define MAX_LOOKED_AT 16384

#define PINNED_MAP(NAME, TYPE, KEY, VALUE, ENTRIES, FLAGS)         \
	struct {                                                    \
		__uint(type, TYPE);                                 \
		__type(key, KEY);                                   \
		__type(value, VALUE);                               \
		__uint(max_entries, ENTRIES);                       \
		__uint(map_flags, FLAGS);                           \
		__uint(pinning, LIBBPF_PIN_BY_NAME);                \
	} NAME SEC(".maps")

PINNED_MAP(config, BPF_MAP_TYPE_ARRAY, __u32, struct config, 1, 0);
PINNED_MAP(endpoints, BPF_MAP_TYPE_HASH, union addr, struct endpoint, MAX_ENDPOINTS, BPF_F_NO_PREALLOC);
PINNED_MAP(ipcache, BPF_MAP_TYPE_LPM_TRIE, struct ipcache_key, struct ipcache_value, MAX_IPCACHE, BPF_F_NO_PREALLOC);
PINNED_MAP(policy, BPF_MAP_TYPE_LPM_TRIE, struct policy_key, struct policy_value, MAX_POLICY, BPF_F_NO_PREALLOC);
PINNED_MAP(port_modes, BPF_MAP_TYPE_HASH, struct port_mode_key, struct port_mode_value, MAX_PORT_MODES,
	   BPF_F_NO_PREALLOC);
PINNED_MAP(listeners, BPF_MAP_TYPE_HASH, struct listener_key, struct listener_value, MAX_LISTENERS, BPF_F_NO_PREALLOC);
PINNED_MAP(services, BPF_MAP_TYPE_HASH, struct service_key, struct service_value, MAX_SERVICES, BPF_F_NO_PREALLOC);
PINNED_MAP(backends, BPF_MAP_TYPE_HASH, struct backend_key, struct backend_value, MAX_BACKENDS, BPF_F_NO_PREALLOC);
PINNED_MAP(translated, BPF_MAP_TYPE_LRU_HASH, struct translated_key, struct translated_value, 65536, 0);
PINNED_MAP(conntrack, BPF_MAP_TYPE_LRU_HASH, struct ct_key, struct ct_value, MAX_CT, 0);
PINNED_MAP(fragments, BPF_MAP_TYPE_LRU_HASH, struct fragment_key, struct fragment_value, 8192, 0);
PINNED_MAP(ports, BPF_MAP_TYPE_HASH, __u32, struct port, MAX_PORTS, BPF_F_NO_PREALLOC);
PINNED_MAP(netns, BPF_MAP_TYPE_HASH, __u64, struct netns_value, MAX_ENDPOINTS, BPF_F_NO_PREALLOC);
PINNED_MAP(both_names, BPF_MAP_TYPE_HASH, struct both_names, __u32, MAX_BOTH_NAMES, BPF_F_NO_PREALLOC);
PINNED_MAP(names, BPF_MAP_TYPE_HASH, struct name_key, struct name_value, MAX_NAMES, BPF_F_NO_PREALLOC);
PINNED_MAP(looked_at, BPF_MAP_TYPE_HASH, struct ct_key, struct looked_at, MAX_LOOKED_AT, BPF_F_NO_PREALLOC);
PINNED_MAP(counters, BPF_MAP_TYPE_PERCPU_ARRAY, __u32, struct counter, REASON_MAX, 0);

#define MAX_BLOCKED 65536
PINNED_MAP(blocklist, BPF_MAP_TYPE_LPM_TRIE, struct ipcache_key, struct block_value, MAX_BLOCKED, BPF_F_NO_PREALLOC);

/* Services (service.h, nat.h). */
#define MAX_MAGLEV 4096
#define MAX_NAT 65536
PINNED_MAP(maglev, BPF_MAP_TYPE_HASH, __u32, struct maglev_value, MAX_MAGLEV, BPF_F_NO_PREALLOC);
PINNED_MAP(standing, BPF_MAP_TYPE_HASH, struct standing_key, __u32, MAX_BACKENDS, BPF_F_NO_PREALLOC);
PINNED_MAP(affinity, BPF_MAP_TYPE_LRU_HASH, struct affinity_key, struct affinity_value, MAX_NAT, 0);
PINNED_MAP(nat, BPF_MAP_TYPE_LRU_HASH, struct nat_key, struct nat_value, MAX_NAT, 0);
PINNED_MAP(nat_back, BPF_MAP_TYPE_LRU_HASH, struct nat_key, struct nat_back_value, MAX_NAT, 0);
PINNED_MAP(nat_used, BPF_MAP_TYPE_ARRAY, __u32, __u32, 1, 0);

PINNED_MAP(event_budgets, BPF_MAP_TYPE_PERCPU_ARRAY, __u32, struct event_budget, 1, 0);

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 20);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} events SEC(".maps");

#endif
