// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/* The walk on Linux 6.15 and newer, where the kfunc that flushes takes a css. */
#include "tree.h"

extern void css_rstat_flush(struct cgroup_subsys_state *css) __ksym;

static __always_inline void flush(struct cgroup *cgroup)
{
	css_rstat_flush(&cgroup->self);
}
