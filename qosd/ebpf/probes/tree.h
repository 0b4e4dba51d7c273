/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * What has every cgroup of a subtree used? One walk in the kernel instead of a read of two files each: what cpu.stat
 * and memory.current say, with a word on which of it the cgroup has at all.
 *
 * A cgroup iterator's output holds one buffer of 32 KiB only, so the records go into an array that the reader maps.
 */
#ifndef QOSD_TREE_H
#define QOSD_TREE_H

#include "kernel.h"

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct bpf_iter__cgroup {
	struct cgroup *cgroup;
};

struct task_cputime___used {
	__u64 sum_exec_runtime;
};

struct cgroup_base_stat {
	struct task_cputime___used cputime;
};

struct cgroup_subsys_state___seen {
	unsigned int flags;
};

struct cgroup___used {
	struct cgroup_base_stat bstat;
	struct cgroup_subsys_state *subsys[1]; /* as many as there are controllers */
};

struct cfs_bandwidth {
	int nr_periods;
	int nr_throttled;
	int nr_burst;
	__u64 throttled_time;
	__u64 burst_time;
};

struct task_group {
	struct cfs_bandwidth cfs_bandwidth;
};

struct page_counter {
	struct {
		long counter;
	} usage;
};

struct mem_cgroup {
	struct page_counter memory;
};

#pragma clang attribute pop

enum cgroup_subsys_id {
	cpu_cgrp_id,
	memory_cgrp_id,
};

#define CSS_VISIBLE (1 << 3) /* linux/cgroup-defs.h; an enum without a name, which CO-RE cannot look up */

/* Of the including file: bring the counters of the cgroup and all below it up to date. */
static void flush(struct cgroup *cgroup);

/* What a record tells of besides usage. */
#define HAS_BANDWIDTH 1
#define HAS_BURST 2
#define HAS_MEMORY 4

struct record {
	__u64 id;
	__u64 parent;
	__u64 usage_nsec; /* with the subtree's, as cpu.stat */
	__u64 throttled_nsec;
	__u64 burst_nsec;
	__u64 memory_pages; /* with the subtree's, as memory.current */
	__u32 nr_periods;
	__u32 nr_throttled;
	__u32 nr_bursts;
	__u32 has;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 16384);
	__type(key, __u32);
	__type(value, struct record);
} tree_records SEC(".maps");

/* How many there are. Above max_entries the rest had no room. */
__u64 tree_count SEC(".data.tree");

/*
 * The controller of this very cgroup, if it has files for it: what a cgroup inherits is not in its array, and a
 * css that another controller needs (io needs memory's) is there without files. The verifier wants a constant
 * offset, so the place of an element is worked out of constants that libbpf puts in.
 */
static __always_inline struct cgroup_subsys_state *visible(struct cgroup *cgroup, __u64 index)
{
	__u64 offset = bpf_core_field_offset(struct cgroup___used, subsys) + index * sizeof(void *);
	struct cgroup_subsys_state *css = *(struct cgroup_subsys_state **)((void *)cgroup + offset);

	if (!css || !(((struct cgroup_subsys_state___seen *)css)->flags & CSS_VISIBLE))
		return NULL;
	return css;
}

/* What cpu_extra_stat_show() prints. The css is a task_group's first member, which the verifier cannot know. */
static __always_inline __u32 read_bandwidth(struct cgroup *cgroup, struct record *record)
{
	struct task_group *group;

	if (!bpf_core_enum_value_exists(enum cgroup_subsys_id, cpu_cgrp_id) ||
	    !bpf_core_field_exists(struct cfs_bandwidth, throttled_time))
		return 0;
	group = (void *)visible(cgroup, bpf_core_enum_value(enum cgroup_subsys_id, cpu_cgrp_id));
	if (!group)
		return 0;
	record->nr_periods = BPF_CORE_READ(group, cfs_bandwidth.nr_periods);
	record->nr_throttled = BPF_CORE_READ(group, cfs_bandwidth.nr_throttled);
	record->throttled_nsec = BPF_CORE_READ(group, cfs_bandwidth.throttled_time);
	if (!bpf_core_field_exists(struct cfs_bandwidth, burst_time))
		return HAS_BANDWIDTH;
	record->nr_bursts = BPF_CORE_READ(group, cfs_bandwidth.nr_burst);
	record->burst_nsec = BPF_CORE_READ(group, cfs_bandwidth.burst_time);
	return HAS_BANDWIDTH | HAS_BURST;
}

/* What memory_current_read() returns, in pages. */
static __always_inline __u32 read_memory(struct cgroup *cgroup, struct record *record)
{
	struct mem_cgroup *memcg;

	if (!bpf_core_enum_value_exists(enum cgroup_subsys_id, memory_cgrp_id))
		return 0;
	memcg = (void *)visible(cgroup, bpf_core_enum_value(enum cgroup_subsys_id, memory_cgrp_id));
	if (!memcg)
		return 0;
	record->memory_pages = BPF_CORE_READ(memcg, memory.usage.counter);
	return HAS_MEMORY;
}

SEC("iter.s/cgroup")
int tree_walk(struct bpf_iter__cgroup *ctx)
{
	struct cgroup *cgroup = ctx->cgroup;
	struct record *record;
	__u32 index;

	if (!cgroup)
		return 0; /* the end */
	/* The reader sets it to 0. A dead cgroup is left out, so the first number seen need not be the first one. */
	if (tree_count == 0)
		flush(cgroup);
	index = tree_count++;
	record = bpf_map_lookup_elem(&tree_records, &index);
	if (!record)
		return 0;
	__builtin_memset(record, 0, sizeof(*record));
	/* Followed directly where the verifier knows the type: a probe read is a call. */
	record->id = cgroup->kn->id;
	record->parent = cgroup->self.parent ? cgroup->self.parent->cgroup->kn->id : 0;
	record->usage_nsec = ((struct cgroup___used *)cgroup)->bstat.cputime.sum_exec_runtime;
	record->has = read_bandwidth(cgroup, record) | read_memory(cgroup, record);
	return 0;
}

#endif
