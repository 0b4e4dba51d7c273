/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * The few kernel structures that the probes look into, with the few members that they read. CO-RE moves the
 * offsets to the running kernel's at load, so neither order nor completeness matters here; names and types do.
 */
#ifndef QOSD_KERNEL_H
#define QOSD_KERNEL_H

#include <stdbool.h>

#include <linux/bpf.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct kernfs_node {
	__u64 id;
};

struct cgroup_subsys_state {
	struct cgroup *cgroup;
	struct cgroup_subsys_state *parent;
};

struct cgroup {
	struct cgroup_subsys_state self;
	struct kernfs_node *kn;
};

struct css_set {
	struct cgroup *dfl_cgrp;
};

struct thread_info {
	__u32 cpu;
};

struct rq {
	__u64 clock;
};

struct cfs_rq {
	struct rq *rq;
};

struct sched_entity {
	struct cfs_rq *cfs_rq;
};

struct sched_info {
	unsigned long long run_delay;
	unsigned long long last_queued;
};

struct task_struct {
	struct thread_info thread_info;
	struct sched_entity se;
	struct sched_info sched_info;
	int pid;
	struct css_set *cgroups;
};

struct blkcg {
	struct cgroup_subsys_state css;
};

struct blkcg_gq {
	struct blkcg *blkcg;
};

struct bio {
	struct blkcg_gq *bi_blkg;
};

struct gendisk {
	int major;
	int first_minor;
};

struct request_queue {
	struct gendisk *disk;
};

struct request {
	struct request_queue *q;
	unsigned int cmd_flags;
	unsigned int __data_len;
	struct bio *bio;
	__u64 start_time_ns;
};

struct sock_cgroup_data {
	struct cgroup *cgroup;
};

struct sock {
	struct sock_cgroup_data sk_cgrp_data;
};

struct tcp_sock {
	__u32 srtt_us;
};

#pragma clang attribute pop

char LICENSE[] SEC("license") = "GPL v2";

#define HISTOGRAM_SLOTS 24

/* Slot 0 is below 1024 ns, slot i is [2^(i+9), 2^(i+10)) ns, the last one is open: 4.3 s and more. */
static __always_inline __u32 histogram_slot(__u64 ns)
{
	__u32 slot = 0, v;

	ns >>= 10;
	v = ns > 0x7fffffff ? 0x7fffffff : (__u32)ns;
	if (v >> 16) { slot += 16; v >>= 16; }
	if (v >> 8) { slot += 8; v >>= 8; }
	if (v >> 4) { slot += 4; v >>= 4; }
	if (v >> 2) { slot += 2; v >>= 2; }
	if (v >> 1) { slot += 1; v >>= 1; }
	slot += v;
	return slot < HISTOGRAM_SLOTS ? slot : HISTOGRAM_SLOTS - 1;
}

struct histogram {
	__u64 slots[HISTOGRAM_SLOTS];
	__u64 total_ns;
};

/* The cgroup2 cgroup, on a hybrid host too: dfl_cgrp is the default (unified) hierarchy's. */
static __always_inline struct cgroup *task_cgroup(struct task_struct *task)
{
	return task->cgroups->dfl_cgrp;
}

#endif
