/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Which workload a cgroup belongs to: the nearest of the registered roots at or above it. */
#ifndef QOSD_ROOTS_H
#define QOSD_ROOTS_H

#include "kernel.h"

#define MAX_DEPTH 256
#define WATCHED 1u
#define NOBODY 0ull /* no cgroup has this id */

struct root {
	__u32 slot; /* its index in the arrays of workloads; 0: it has none */
	__u32 flags;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__type(key, __u64);
	__type(value, struct root);
} roots SEC(".maps");

struct search {
	struct cgroup_subsys_state *css;
	__u64 root; /* NOBODY: in none */
	__u32 slot;
	__u32 flags;
};

/*
 * One step up. In bpf_loop, so that the verifier looks at it once and not for each level; by probe reads, since
 * for each pointer that is followed directly a 6.2+ verifier walks the kernel's whole BTF.
 */
static long one_level_up(__u32 level, struct search *search)
{
	struct cgroup_subsys_state *css = search->css;
	__u64 id = BPF_CORE_READ(css, cgroup, kn, id);
	struct root *root = bpf_map_lookup_elem(&roots, &id);

	if (root) {
		search->root = id;
		search->slot = root->slot;
		search->flags = root->flags;
		return 1;
	}
	search->css = css = BPF_CORE_READ(css, parent);
	return !css;
}

static __always_inline void find_nearest(struct search *search)
{
	bpf_loop(MAX_DEPTH, one_level_up, search, 0);
}

/* The workload's root, or the cgroup itself where it is in none. */
static __always_inline __u64 workload_of(struct cgroup *cgroup)
{
	struct search search = { .css = &cgroup->self };

	find_nearest(&search);
	return search.root ? search.root : BPF_CORE_READ(cgroup, kn, id);
}

#endif
