/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* How often tasks of the workloads lose their CPU while they could go on: docs/policies.md. */
#include <stdbool.h>

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

char LICENSE[] SEC("license") = "Dual BSD/GPL";

struct task_struct;

/* Filled by qosd: the cgroup ids of the policy's workloads. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__type(key, __u64);
	__type(value, __u32);
} workloads SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__uint(max_entries, 1024);
	__type(key, __u64);
	__type(value, __u64);
} preempted SEC(".maps");

static void count(__u64 workload)
{
	__u64 zero = 0, *times;

	times = bpf_map_lookup_elem(&preempted, &workload);
	if (!times) {
		bpf_map_update_elem(&preempted, &workload, &zero, BPF_NOEXIST);
		times = bpf_map_lookup_elem(&preempted, &workload);
	}
	if (times)
		*times += 1;
}

/* At this tracepoint the current task is still the one that loses the CPU; in state 0 (TASK_RUNNING) it wanted to go on. */
SEC("tp_btf/sched_switch")
int BPF_PROG(on_switch, bool preempt, struct task_struct *prev, struct task_struct *next, unsigned int prev_state)
{
	__u64 workload;

	if (prev_state)
		return 0;
	/* The workload is the task's own cgroup, or one above it. */
	for (int level = 1; level <= 8; level++) {
		workload = bpf_get_current_ancestor_cgroup_id(level);
		if (!workload)
			return 0;
		if (bpf_map_lookup_elem(&workloads, &workload)) {
			count(workload);
			return 0;
		}
	}
	return 0;
}
