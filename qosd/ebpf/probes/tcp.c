// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/*
 * How far away are a workload's TCP peers, and how many of its segments were lost?
 *
 * The kernel keeps a smoothed round-trip time for each socket. tcp_probe is called for each packet that an
 * established socket receives, so one in RTT_SAMPLED tells its socket's time: busy connections count for more.
 * Whose a socket is says the cgroup that it was made in. Only registered workloads count.
 */
#include "roots.h"
#include "cost.h"

#define RTT_SAMPLED 8
#define TIMED_SHIFT 3 /* of these one in 8, so one call in 64, as SAMPLED_SHIFT says */

struct tcp {
	struct histogram rtt;
	__u64 retransmits; /* segments sent again, SYNs among them */
};

/* Shared by the CPUs: after the sampling, atomic adds are rare enough. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1024); /* set before load: room for each CPU's share of free elements */
	__type(key, __u64);
	__type(value, struct tcp);
} tcp_workloads SEC(".maps");

struct tcp_counters {
	__u64 new_workloads;
	__u64 cost_ns; /* of the runs that were timed */
};

struct tcp_counters tcp_counters SEC(".data.tcp");

static const struct tcp no_tcp;

static __always_inline struct tcp *tcp_of(struct sock *sk)
{
	struct cgroup *cgroup = BPF_CORE_READ(sk, sk_cgrp_data.cgroup);
	struct search search = {};
	struct tcp *found;

	if (!cgroup)
		return NULL;
	search.css = &cgroup->self;
	find_nearest(&search);
	if (search.root == NOBODY)
		return NULL;
	found = bpf_map_lookup_elem(&tcp_workloads, &search.root);
	if (found)
		return found;
	if (!bpf_map_update_elem(&tcp_workloads, &search.root, &no_tcp, BPF_NOEXIST))
		__sync_fetch_and_add(&tcp_counters.new_workloads, 1);
	return bpf_map_lookup_elem(&tcp_workloads, &search.root);
}

static __always_inline void count_rtt(struct sock *sk)
{
	__u64 ns = (__u64)(BPF_CORE_READ((struct tcp_sock *)sk, srtt_us) >> 3) * 1000; /* kept in 1/8 us */
	struct tcp *tcp = ns ? tcp_of(sk) : NULL;

	if (!tcp)
		return;
	__sync_fetch_and_add(&tcp->rtt.slots[histogram_slot(ns)], 1);
	__sync_fetch_and_add(&tcp->rtt.total_ns, ns);
}

SEC("tp_btf/tcp_probe")
int BPF_PROG(tcp_rtt, struct sock *sk)
{
	__u32 chance = bpf_get_prandom_u32();
	__u64 began;

	if (chance & (RTT_SAMPLED - 1))
		return 0;
	began = chance / RTT_SAMPLED & ((1 << TIMED_SHIFT) - 1) ? 0 : bpf_ktime_get_ns();
	count_rtt(sk);
	if (began)
		__sync_fetch_and_add(&tcp_counters.cost_ns, cost_since(began));
	return 0;
}

/* Its error came as a third argument in 6.17; the first one is all that is needed. */
SEC("tp_btf/tcp_retransmit_skb")
int BPF_PROG(tcp_retransmit, struct sock *sk)
{
	struct tcp *tcp = tcp_of(sk);

	if (tcp)
		__sync_fetch_and_add(&tcp->retransmits, 1);
	return 0;
}
