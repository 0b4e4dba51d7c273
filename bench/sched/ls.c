/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Latency-sensitive load, open loop: Poisson arrivals at a rate that follows a schedule, a fixed amount of
 * work each, N workers taking arrivals in order (an M/D/N queue). Latency counts from when a request was
 * meant to start, so that a stall is felt by every request that came during it.
 *
 *   ls calibrate                                         rounds of spin() in a millisecond
 *   ls run OUT START_NS DURATION_MS WORKERS SEED ROUNDS NR_CPUS WORK_USEC MS:PCT[,MS:PCT...] [CGROUP.PROCS...]
 *
 * The schedule repeats; PCT is of NR_CPUS CPUs. START_NS is CLOCK_MONOTONIC. OUT gets five uint64 a
 * request: intended start (ns since START_NS), latency (ns), how long a worker was late to take it up though
 * none was busy before (ns; 0 when it had queued), how long the work itself took (ns), the CPU it began on.
 * A request still waiting GRACE after the end is written with the time it had waited by then.
 */
#define _GNU_SOURCE
#include <math.h>
#include <pthread.h>
#include <sched.h>
#include <stdbool.h>

#include "join.h"
#include "spin.h"

#define GRACE_NS 1000000000ull

struct request {
	uint64_t intended;
	uint64_t latency;
	uint64_t wake;
	uint64_t service;
	uint64_t cpu;
};

static struct request *requests;
static size_t nr_requests, next_request;
static uint64_t start_ns, end_ns, rounds;

static uint64_t calibrate(void)
{
	const uint64_t probe = 2000000;
	uint64_t best = UINT64_MAX;

	/* The fastest of many short runs: the one that nobody disturbed. */
	for (int i = 0; i < 200; i++) {
		uint64_t before = now_ns();
		spin(probe / 10, before);
		uint64_t took = now_ns() - before;
		if (took < best)
			best = took;
	}
	return probe / 10 * 1000000ull / best;
}

static double uniform(uint64_t *state)
{
	/* splitmix64 */
	uint64_t z = (*state += 0x9e3779b97f4a7c15ull);
	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
	z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
	return ((double)((z ^ (z >> 31)) >> 11) + 0.5) / 9007199254740992.0;
}

/* Arrivals of a Poisson process whose rate is constant within a step of the schedule. */
static void schedule(const char *shape, uint64_t duration_ns, double per_pct_ns, uint64_t seed)
{
	size_t room = 1 << 16;
	uint64_t step_start = 0;
	const char *at = shape;

	requests = malloc(room * sizeof(*requests));
	while (step_start < duration_ns) {
		char *rest;
		uint64_t step_ns = strtoull(at, &rest, 10) * 1000000ull;
		double pct = strtod(rest + 1, &rest);
		if (step_ns == 0) {
			fprintf(stderr, "bad schedule: %s\n", shape);
			exit(2);
		}
		at = *rest == ',' ? rest + 1 : shape;
		double t = (double)step_start;
		uint64_t step_end = step_start + step_ns;
		if (step_end > duration_ns)
			step_end = duration_ns;
		while (pct > 0) {
			t += -log(uniform(&seed)) / (pct * per_pct_ns);
			if (t >= (double)step_end)
				break;
			if (nr_requests == room)
				requests = realloc(requests, (room *= 2) * sizeof(*requests));
			requests[nr_requests++] = (struct request){ .intended = (uint64_t)t };
		}
		step_start += step_ns;
	}
}

static void sleep_until(uint64_t ns)
{
	struct timespec t = { (time_t)(ns / 1000000000ull), (long)(ns % 1000000000ull) };

	while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL) == EINTR)
		;
}

static void *worker(void *arg)
{
	uint64_t x = (uint64_t)(uintptr_t)arg + 1;

	prctl(PR_SET_TIMERSLACK, 1);
	for (;;) {
		size_t i = __atomic_fetch_add(&next_request, 1, __ATOMIC_RELAXED);
		if (i >= nr_requests)
			return NULL;
		uint64_t intended = start_ns + requests[i].intended;
		bool slept = now_ns() < intended;
		if (slept)
			sleep_until(intended);
		uint64_t began = now_ns();
		if (began < end_ns + GRACE_NS) {
			requests[i].cpu = (uint64_t)sched_getcpu();
			x = spin(rounds, x);
			uint64_t done = now_ns();
			requests[i].latency = done - intended;
			requests[i].service = done - began;
			requests[i].wake = slept ? began - intended : 0;
		} else {
			requests[i].latency = end_ns + GRACE_NS - intended;
		}
	}
}

static int save(const char *path)
{
	FILE *out = fopen(path, "wb");

	if (out == NULL || fwrite(requests, sizeof(*requests), nr_requests, out) != nr_requests || fclose(out) != 0) {
		perror(path);
		return 1;
	}
	return 0;
}

int main(int argc, char **argv)
{
	if (argc == 2 && strcmp(argv[1], "calibrate") == 0) {
		printf("%llu\n", (unsigned long long)calibrate());
		return 0;
	}
	if (argc < 11 || strcmp(argv[1], "run") != 0) {
		fprintf(stderr, "usage: ls calibrate | ls run OUT START_NS DURATION_MS WORKERS SEED ROUNDS NR_CPUS"
				" WORK_USEC MS:PCT[,...] [CGROUP.PROCS...]\n");
		return 2;
	}
	die_with_parent();
	uint64_t duration_ns = strtoull(argv[4], NULL, 10) * 1000000ull;
	int workers = atoi(argv[5]);
	pthread_t threads[256];

	start_ns = strtoull(argv[3], NULL, 10);
	end_ns = start_ns + duration_ns;
	rounds = strtoull(argv[7], NULL, 10);
	schedule(argv[10], duration_ns, atof(argv[8]) / 100 / (atof(argv[9]) * 1000), strtoull(argv[6], NULL, 10));
	for (int i = 11; i < argc; i++)
		join_cgroup(argv[i]);
	if (workers < 1 || workers > 256)
		return 2;
	for (int i = 0; i < workers; i++)
		if (pthread_create(&threads[i], NULL, worker, (void *)(uintptr_t)i) != 0)
			return 1;
	for (int i = 0; i < workers; i++)
		pthread_join(threads[i], NULL);
	return save(argv[2]);
}
