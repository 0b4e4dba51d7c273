/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Best-effort hogs that know how much work they did: CPU time alone would call a slowed or migrated hog
 * as good as any other.
 *
 *   hog COUNTERS THREADS ROUNDS_PER_UNIT [CGROUP.PROCS...]
 *
 * COUNTERS is a file of THREADS cache lines; the first 8 bytes of each count the units its thread finished.
 */
#include <pthread.h>
#include <sys/mman.h>

#include "join.h"
#include "spin.h"

#define LINE 64

static uint64_t rounds;

static void *hog(void *arg)
{
	uint64_t *counter = arg;
	uint64_t x = 88172645463325252ull;

	for (;;) {
		x = spin(rounds, x);
		__atomic_store_n(counter, *counter + 1, __ATOMIC_RELAXED);
	}
	return NULL;
}

int main(int argc, char **argv)
{
	if (argc < 4) {
		fprintf(stderr, "usage: hog COUNTERS THREADS ROUNDS_PER_UNIT [CGROUP.PROCS...]\n");
		return 2;
	}
	int threads = atoi(argv[2]);
	rounds = strtoull(argv[3], NULL, 10);
	die_with_parent();
	for (int i = 4; i < argc; i++)
		join_cgroup(argv[i]);
	int fd = open(argv[1], O_RDWR | O_CLOEXEC);
	if (fd < 0) {
		perror(argv[1]);
		return 1;
	}
	char *counters = mmap(NULL, (size_t)threads * LINE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (counters == MAP_FAILED) {
		perror("mmap");
		return 1;
	}
	for (int i = 0; i < threads; i++) {
		pthread_t thread;
		if (pthread_create(&thread, NULL, hog, counters + (size_t)i * LINE) != 0)
			return 1;
	}
	pause();
	return 0;
}
