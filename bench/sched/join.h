/* SPDX-License-Identifier: Apache-2.0 */
#ifndef QOSD_BENCH_JOIN_H
#define QOSD_BENCH_JOIN_H

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

/* Move this process into a cgroup before it makes threads, and die with the runner: no load outlives it. */
static inline void join_cgroup(const char *procs)
{
	int fd = open(procs, O_WRONLY | O_CLOEXEC);
	if (fd < 0 || write(fd, "0\n", 2) != 2) {
		fprintf(stderr, "%s: %s\n", procs, strerror(errno));
		exit(1);
	}
	close(fd);
}

static inline void die_with_parent(void)
{
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (getppid() == 1)
		exit(1);
}

#endif
