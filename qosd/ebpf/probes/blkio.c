// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/*
 * How long did a workload's block requests take, from allocation to completion, by device and direction?
 *
 * The request says itself when it was made (start_time_ns, set unless the queue's iostats is 0), so one hook is
 * enough. Whose it is says its bio's blkcg: writeback is charged to the cgroup that dirtied the pages, and where
 * the io controller is not enabled it is the nearest ancestor that has it.
 */
#include "roots.h"
#include "cost.h"

#define REQ_OP_MASK 0xff

struct io_key {
	__u64 workload; /* NOBODY: a request without a bio */
	__u32 device;   /* major << 20 | minor, as MKDEV has it */
	__u32 op;       /* REQ_OP_READ 0, REQ_OP_WRITE 1, REQ_OP_FLUSH 2, REQ_OP_DISCARD 3, ... */
};

struct io {
	struct histogram latency;
	__u64 bytes;
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_PERCPU_HASH);
	__uint(max_entries, 512);
	__type(key, struct io_key);
	__type(value, struct io);
} blkio_latency SEC(".maps");

struct blkio_counters {
	__u64 new_keys;
	__u64 untimed; /* completed, but nobody noted when they began */
	__u64 cost_ns; /* of the runs that were timed */
};

struct blkio_counters blkio_counters SEC(".data.blkio");

static const struct io no_blkio;

static __always_inline struct io *io_of(struct io_key *key)
{
	struct io *found = bpf_map_lookup_elem(&blkio_latency, key);

	if (found)
		return found;
	if (!bpf_map_update_elem(&blkio_latency, key, &no_blkio, BPF_NOEXIST))
		__sync_fetch_and_add(&blkio_counters.new_keys, 1);
	return bpf_map_lookup_elem(&blkio_latency, key);
}

static __always_inline __u64 owner(struct request *request)
{
	struct cgroup *cgroup = BPF_CORE_READ(request, bio, bi_blkg, blkcg, css.cgroup);

	return cgroup ? workload_of(cgroup) : NOBODY;
}

SEC("tp_btf/block_rq_complete")
int BPF_PROG(blkio_complete, struct request *request, int error, unsigned int bytes)
{
	__u64 now = bpf_ktime_get_ns();
	__u64 since = request->start_time_ns;
	struct gendisk *disk;
	struct io_key key = {};
	struct io *io;

	if (bytes < request->__data_len) /* a part of it; the rest will follow */
		return 0;
	if (!since || now < since) {
		__sync_fetch_and_add(&blkio_counters.untimed, 1);
		return 0;
	}
	disk = BPF_CORE_READ(request, q, disk);
	key.workload = owner(request);
	key.device = (__u32)BPF_CORE_READ(disk, major) << 20 | (__u32)BPF_CORE_READ(disk, first_minor);
	key.op = request->cmd_flags & REQ_OP_MASK;
	io = io_of(&key);
	if (!io)
		return 0;
	io->latency.slots[histogram_slot(now - since)]++;
	io->latency.total_ns += now - since;
	io->bytes += bytes;
	if (is_sampled(now))
		__sync_fetch_and_add(&blkio_counters.cost_ns, cost_since(now));
	return 0;
}
