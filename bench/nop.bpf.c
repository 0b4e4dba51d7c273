// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/* The same hooks as the run-queue probe, doing nothing: what any probe there must cost. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

SEC("tp_btf/sched_migrate_task")
int nop_migrate(void *ctx)
{
	return 0;
}

SEC("tp_btf/sched_switch")
int nop_switch(void *ctx)
{
	return 0;
}

char LICENSE[] SEC("license") = "GPL v2";
