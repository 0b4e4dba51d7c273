/* SPDX-License-Identifier: Apache-2.0 */
/* The work of both sides: a dependency chain in registers, so that a neighbour costs CPU time and nothing else. */
#ifndef QOSD_BENCH_SPIN_H
#define QOSD_BENCH_SPIN_H

#include <stdint.h>
#include <time.h>

static inline uint64_t now_ns(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000ull + (uint64_t)t.tv_nsec;
}

static inline uint64_t spin(uint64_t rounds, uint64_t seed)
{
	uint64_t x = seed | 1;
	for (uint64_t i = 0; i < rounds; i++) {
		x ^= x << 13;
		x ^= x >> 7;
		x ^= x << 17;
		__asm__ volatile("" : "+r"(x));
	}
	return x;
}

#endif
