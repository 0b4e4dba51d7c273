// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/*
 * How long did the tasks of a workload stand still to free memory themselves?
 *
 * direct: the host was short of memory; memcg: a memory.high or memory.max at or above them was reached, or
 * they wrote memory.reclaim.
 */
#include "roots.h"
#include "cost.h"

enum kind { DIRECT, MEMCG, KINDS };

struct stall_key {
	__u64 workload;
	__u32 kind;
	__u32 reserved;
};

/* Shared by the CPUs: a reclaim takes longer than any atomic add. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1024);
	__type(key, struct stall_key);
	__type(value, struct histogram);
} reclaim_stalls SEC(".maps");

struct since {
	__u64 ns[KINDS];
};

struct {
	__uint(type, BPF_MAP_TYPE_TASK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct since);
} reclaiming SEC(".maps");

struct reclaim_counters {
	__u64 new_stalls;
	__u64 cost_ns; /* of the runs that were timed */
};

struct reclaim_counters reclaim_counters SEC(".data.reclaim");

static const struct histogram no_reclaim;

static __always_inline int reclaim_begin(enum kind kind)
{
	struct task_struct *task = (void *)bpf_get_current_task_btf();
	struct since *since = bpf_task_storage_get(&reclaiming, task, 0, BPF_LOCAL_STORAGE_GET_F_CREATE);

	if (since)
		since->ns[kind] = bpf_ktime_get_ns();
	return 0;
}

static __always_inline void reclaim_cost(__u64 began)
{
	if (is_sampled(began))
		__sync_fetch_and_add(&reclaim_counters.cost_ns, cost_since(began));
}

static __always_inline struct histogram *stalls_of(struct stall_key *key)
{
	struct histogram *found = bpf_map_lookup_elem(&reclaim_stalls, key);

	if (found)
		return found;
	if (!bpf_map_update_elem(&reclaim_stalls, key, &no_reclaim, BPF_NOEXIST))
		__sync_fetch_and_add(&reclaim_counters.new_stalls, 1);
	return bpf_map_lookup_elem(&reclaim_stalls, key);
}

static __always_inline int reclaim_end(enum kind kind)
{
	struct task_struct *task = (void *)bpf_get_current_task_btf();
	struct since *since = bpf_task_storage_get(&reclaiming, task, 0, 0);
	struct stall_key key = { .kind = kind };
	struct histogram *stalls;
	__u64 now, ns;

	if (!since || !since->ns[kind])
		return 0;
	now = bpf_ktime_get_ns();
	ns = now - since->ns[kind];
	since->ns[kind] = 0;
	key.workload = workload_of(BPF_CORE_READ(task, cgroups, dfl_cgrp));
	stalls = stalls_of(&key);
	if (!stalls)
		return 0;
	__sync_fetch_and_add(&stalls->slots[histogram_slot(ns)], 1);
	__sync_fetch_and_add(&stalls->total_ns, ns);
	reclaim_cost(now);
	return 0;
}

SEC("tp_btf/mm_vmscan_direct_reclaim_begin")
int reclaim_direct_begin(void *ctx)
{
	return reclaim_begin(DIRECT);
}

SEC("tp_btf/mm_vmscan_direct_reclaim_end")
int reclaim_direct_end(void *ctx)
{
	return reclaim_end(DIRECT);
}

SEC("tp_btf/mm_vmscan_memcg_reclaim_begin")
int reclaim_memcg_begin(void *ctx)
{
	return reclaim_begin(MEMCG);
}

SEC("tp_btf/mm_vmscan_memcg_reclaim_end")
int reclaim_memcg_end(void *ctx)
{
	return reclaim_end(MEMCG);
}
