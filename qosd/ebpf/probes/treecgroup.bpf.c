// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/*
 * The walk before Linux 6.15, where the kfunc that flushes takes a cgroup. An object of its own: a weak reference to
 * what the kernel does not have makes libbpf search all modules' BTF, which wants CAP_SYS_ADMIN.
 */
#include "tree.h"

extern void cgroup_rstat_flush(struct cgroup *cgroup) __ksym;

static __always_inline void flush(struct cgroup *cgroup)
{
	cgroup_rstat_flush(cgroup);
}
