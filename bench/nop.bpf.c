// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/* The same hooks as the run-queue probe, doing nothing: what any probe there must cost. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

SEC("tp_btf/sched_wakeup")
int nop_wakeup(void *ctx)
{
	return 0;
}

SEC("tp_btf/sched_wakeup_new")
int nop_wakeup_new(void *ctx)
{
	return 0;
}

SEC("tp_btf/sched_switch")
int nop_switch(void *ctx)
{
	return 0;
}

char LICENSE[] SEC("license") = "GPL v2";
