// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/*
 * The probes that hang on the kernel's tracepoints, as one object: libbpf reads the kernel's whole BTF for each
 * object that it loads (10 ms), and they share the map of workload roots. Each can be left out at load.
 */
#include "runq.c"
#include "reclaim.c"
#include "blkio.c"
#include "tcp.c"
