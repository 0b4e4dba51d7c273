// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/*
 * What has every cgroup of a subtree used? One walk in the kernel instead of a read of a file each.
 *
 * A cgroup iterator's output holds one buffer of 32 KiB only, so the records go into an array that the reader maps.
 */
#include "kernel.h"

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct bpf_iter_meta {
	__u64 seq_num;
};

struct bpf_iter__cgroup {
	struct bpf_iter_meta *meta;
	struct cgroup *cgroup;
};

struct task_cputime___used {
	__u64 sum_exec_runtime;
};

struct cgroup_base_stat {
	struct task_cputime___used cputime;
};

struct cgroup___used {
	struct cgroup_base_stat bstat;
	int level;
	int nr_populated_csets;
	int nr_populated_domain_children;
	int nr_populated_threaded_children;
};

#pragma clang attribute pop

/* One of the two is there: the first one's name until 6.14, the second one's since 6.15. */
extern void cgroup_rstat_flush(struct cgroup *cgroup) __ksym __weak;
extern void css_rstat_flush(struct cgroup_subsys_state *css) __ksym __weak;

struct record {
	__u64 id;
	__u64 parent;
	__u64 usage_nsec; /* with the subtree's, as cpu.stat */
	__u32 level;
	__u32 populated;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 16384);
	__type(key, __u32);
	__type(value, struct record);
} tree_records SEC(".maps");

struct tree_head {
	__u64 count;   /* above max_entries: the rest had no room */
	__u64 flushed; /* 0: no kfunc to do it, the values are of some time ago */
};

struct tree_head tree_head SEC(".data.tree");

SEC("iter.s/cgroup")
int tree_walk(struct bpf_iter__cgroup *ctx)
{
	struct cgroup *cgroup = ctx->cgroup;
	struct cgroup___used *used = (void *)cgroup;
	struct record *record;
	__u32 index;

	if (!cgroup)
		return 0; /* the end */
	if (ctx->meta->seq_num == 0) {
		tree_head.count = 0;
		if (css_rstat_flush) {
			css_rstat_flush(&cgroup->self);
			tree_head.flushed = 1;
		} else if (cgroup_rstat_flush) {
			cgroup_rstat_flush(cgroup);
			tree_head.flushed = 1;
		}
	}
	index = tree_head.count++;
	record = bpf_map_lookup_elem(&tree_records, &index);
	if (!record)
		return 0;
	/* Followed directly: a probe read is a call, and there would be eleven for each cgroup. */
	record->id = cgroup->kn->id;
	record->parent = cgroup->self.parent ? cgroup->self.parent->cgroup->kn->id : 0;
	record->usage_nsec = used->bstat.cputime.sum_exec_runtime;
	record->level = used->level;
	record->populated = used->nr_populated_csets + used->nr_populated_domain_children +
			    used->nr_populated_threaded_children > 0;
	return 0;
}
