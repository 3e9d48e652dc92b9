/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * Never loaded: its BTF tells tests/bpf/test_layout.py every struct, enum and number of penstock.h, also
 * those that no map names.
 */
#include "../maps.h"

#define KEEP(NAME) struct NAME kept_##NAME
KEEP(endpoint);
KEEP(ipcache_key);
KEEP(ipcache_value);
KEEP(policy_key);
KEEP(policy_value);
KEEP(name_key);
KEEP(name_value);
KEEP(port_mode_key);
KEEP(port_mode_value);
KEEP(listener_key);
KEEP(listener_value);
KEEP(service_key);
KEEP(service_value);
KEEP(backend_key);
KEEP(backend_value);
KEEP(block_value);
KEEP(maglev_value);
KEEP(standing_key);
KEEP(translated_key);
KEEP(translated_value);
KEEP(netns_value);
KEEP(port);
KEEP(ct_key);
KEEP(ct_value);
KEEP(counter);
KEEP(config);
KEEP(event);

enum verdict kept_verdict;
enum listener_kind kept_listener_kind;
enum mesh_mode kept_mesh_mode;
enum direction kept_direction;
enum reason kept_reason;
enum hook kept_hook;

enum numbers {
	N_MARK_MASK = MARK_MASK,
	N_MARK_TO_PROXY = MARK_TO_PROXY,
	N_MARK_PROXY_DOWNSTREAM = MARK_PROXY_DOWNSTREAM,
	N_MARK_PROXY_UPSTREAM = MARK_PROXY_UPSTREAM,
	N_MARK_PROXY_EDGE = MARK_PROXY_EDGE,
	N_IDENTITY_HOST = IDENTITY_HOST,
	N_IDENTITY_WORLD = IDENTITY_WORLD,
	N_IPCACHE_MESH = IPCACHE_MESH,
	N_IPCACHE_LOCAL = IPCACHE_LOCAL,
	N_IPCACHE_NODE = IPCACHE_NODE,
	N_IDENTITY_DNS = IDENTITY_DNS,
	N_IDENTITY_PREFIXES = IDENTITY_PREFIXES,
	N_POLICY_AUTHENTICATED = POLICY_AUTHENTICATED,
	N_POLICY_DNS = POLICY_DNS,
	N_MAX_NAME_LISTS = MAX_NAME_LISTS,
	N_ENDPOINT_ELSEWHERE = ENDPOINT_ELSEWHERE,
	N_PORT_DIRECT4 = PORT_DIRECT4,
	N_PORT_DIRECT6 = PORT_DIRECT6,
	N_SERVICE_HTTP = SERVICE_HTTP,
	N_SERVICE_EXTERNAL = SERVICE_EXTERNAL,
	N_SERVICE_MAGLEV = SERVICE_MAGLEV,
	N_STANDING_READY = STANDING_READY,
	N_STANDING_ENDING = STANDING_ENDING,
	N_MAGLEV_SLOTS = MAGLEV_SLOTS,
	N_NETNS_HOST = NETNS_HOST,
	N_PROXY_UID = PROXY_UID,
	N_CONFIG_HOST_ACCESS = CONFIG_HOST_ACCESS,
	N_POLICY_FIXED_BITS = POLICY_FIXED_BITS,
	N_POLICY_FULL_BITS = POLICY_FULL_BITS,
} kept_numbers;
