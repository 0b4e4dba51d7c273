// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/* How many CPUs a wake-up may look at for an idle one, beside the utilisation that decided it. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_tracing.h>

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)
struct sched_domain_shared {
	int nr_idle_scan;
};
struct sched_domain {
	struct sched_domain_shared *shared;
	unsigned int imbalance_pct;
	unsigned int span_weight;
};
struct sched_avg {
	unsigned long util_avg;
};
struct cfs_rq {
	struct sched_avg avg;
	struct rq *rq;
};
struct rq {
	struct sched_domain *sd;
	struct cfs_rq cfs;
	int cpu;
};
#pragma clang attribute pop

#define SCAN 0
#define IMBALANCE_PCT 1
#define SPAN 2
#define CPUS 8
#define MAX_CPUS 1024

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, CPUS + MAX_CPUS);
	__type(key, __u32);
	__type(value, __u64);
	__uint(map_flags, BPF_F_MMAPABLE);
} scan SEC(".maps");

static __always_inline void put(__u32 key, __u64 value)
{
	__u64 *slot = bpf_map_lookup_elem(&scan, &key);

	if (slot)
		*slot = value;
}

SEC("tp_btf/pelt_cfs_tp")
int BPF_PROG(pelt, struct cfs_rq *cfs_rq)
{
	struct rq *rq = cfs_rq->rq;
	struct sched_domain *sd;
	struct sched_domain_shared *shared;

	if (&rq->cfs != cfs_rq)
		return 0;
	/* The lowest domain shares the last-level cache where CPUs have no SMT siblings; elsewhere shared is NULL. */
	sd = BPF_CORE_READ(rq, sd);
	shared = BPF_CORE_READ(sd, shared);
	if (!shared)
		return 0;
	put(SCAN, BPF_CORE_READ(shared, nr_idle_scan));
	put(IMBALANCE_PCT, BPF_CORE_READ(sd, imbalance_pct));
	put(SPAN, BPF_CORE_READ(sd, span_weight));
	put(CPUS + (BPF_CORE_READ(rq, cpu) & (MAX_CPUS - 1)), BPF_CORE_READ(cfs_rq, avg.util_avg));
	return 0;
}

char LICENSE[] SEC("license") = "GPL";
