/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * What a probe costs, by its own clock: BPF_ENABLE_STATS wants CAP_SYS_ADMIN, which the daemon does not have, and
 * times every run of every program on the host. One run in SAMPLED is timed here, chosen by a hash of the time it
 * began at: there is no counter to keep, and no beat with whatever is being measured.
 */
#ifndef QOSD_COST_H
#define QOSD_COST_H

#define SAMPLED_SHIFT 6 /* one in 64 */
#define LONGEST_NS 100000 /* more than any run takes; what the hypervisor took meanwhile is not the probe's */

static __always_inline bool is_sampled(__u64 began)
{
	return began * 0x9e3779b97f4a7c15ull >> (64 - SAMPLED_SHIFT) == 0;
}

static __always_inline __u64 cost_since(__u64 began)
{
	__u64 ns = bpf_ktime_get_ns() - began;

	return ns < LONGEST_NS ? ns : LONGEST_NS;
}

#endif
