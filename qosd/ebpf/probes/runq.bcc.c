// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/*
 * The run-queue probe once more, for bcc: for kernels that do not describe their types, compiled on the host with
 * its headers. The maps that are read hold the very structures of runq.c, which explains them, so that the same
 * decoders read both. The headers do not have struct rq, whose clock the kernel's own times of a wait are in: this
 * program is called at wake-ups too, and reads the clock itself. Loops are unrolled, so roots are looked for DEPTH
 * levels up and waits are shared out among RECENT occupants; what is further away is in no workload, or
 * unknown_ns. Its cost is timed in the same way.
 *
 * CPUS, SLOTS, PAIRS, BLAME_FLOOR_NS and EVENT_GAP_NS are defined by who compiles this.
 */
#include <linux/cgroup.h>
#include <linux/kernfs.h>
#include <linux/sched.h>

#define DEPTH 16
#define HISTORY 32
#define RECENT 16
#define HISTOGRAM_SLOTS 24
#define TASKS (1u << 16)
#define WATCHED 1u
#define NOBODY 0ull

struct qosd_root {
	u32 slot;
	u32 flags;
};

/* Two whose pids are the same modulo TASKS share one: if the first was waiting just then, its wait is not seen. */
struct qosd_task {
	u64 waiting_since; /* 0: not waiting */
	u64 cgroup;
	u32 pid;
	u32 generation;
	u16 slot;
	u16 watched;
	u32 cpu; /* where it waits */
};

struct qosd_settings {
	u64 blame_floor_ns;
	u64 event_gap_ns;
	u32 generation;
	u32 cpus;
};

struct qosd_workload {
	u64 root;
	u64 threshold_ns;
};

struct qosd_waits {
	u64 slots[HISTOGRAM_SLOTS];
	u64 total_ns;
	u64 idle_ns;
	u64 unknown_ns;
	u64 breaches;
	u64 last_event;
	u64 last_other;
	u64 pad[2];
};

struct qosd_pair {
	u64 victim;
	u64 culprit;
};

struct qosd_blame {
	u64 ns;
	u64 count;
	u64 root;
};

struct qosd_occupant {
	u64 cgroup;
	u64 since;
	u64 slot;
};

struct qosd_cpu {
	struct qosd_occupant history[HISTORY];
	u32 head;
	u32 reserved;
	u64 lost_events;
	u64 new_blames;
	u64 unseen;
	u64 cost_ns;
	u64 pad[3];
};

struct qosd_event {
	u64 monotonic_ns;
	u64 wait_ns;
	u64 victim;
	u64 victim_cgroup;
	u64 culprit;
	u64 culprit_root;
	u64 culprit_ns;
	u32 cpu;
	u32 pid;
};

BPF_HASH(roots, u64, struct qosd_root, 1024);
BPF_ARRAY(runq_settings, struct qosd_settings, 1);
BPF_ARRAY(runq_tasks, struct qosd_task, TASKS);
BPF_ARRAY(runq_workloads, struct qosd_workload, SLOTS);
BPF_F_TABLE("array", u32, struct qosd_waits, runq_waits, SLOTS * CPUS, BPF_F_MMAPABLE);
BPF_F_TABLE("array", u32, struct qosd_cpu, runq_cpus, CPUS, BPF_F_MMAPABLE);
BPF_TABLE("lru_hash", struct qosd_pair, struct qosd_blame, runq_blames, PAIRS);
BPF_RINGBUF_OUTPUT(runq_events, 16);

/* In 64 bits throughout: bcc compiles for a processor without 32-bit jumps, and 6.1's verifier loses track of them. */
static inline u64 slot_of_ns(u64 ns)
{
	u64 slot = 0, v;

	ns >>= 10;
	v = ns > 0x7fffffff ? 0x7fffffff : ns;
	if (v >> 16) { slot += 16; v >>= 16; }
	if (v >> 8) { slot += 8; v >>= 8; }
	if (v >> 4) { slot += 4; v >>= 4; }
	if (v >> 2) { slot += 2; v >>= 2; }
	if (v >> 1) { slot += 1; v >>= 1; }
	slot += v;
	return slot < HISTOGRAM_SLOTS ? slot : HISTOGRAM_SLOTS - 1;
}

static inline void add_cost(u64 began)
{
	u32 cpu = bpf_get_smp_processor_id();
	struct qosd_cpu *here;
	u64 ns;

	if (began * 0x9e3779b97f4a7c15ull >> 58)
		return;
	here = runq_cpus.lookup(&cpu);
	ns = bpf_ktime_get_ns() - began;
	if (here)
		lock_xadd(&here->cost_ns, ns < 100000 ? ns : 100000);
}

static inline struct qosd_task *task_of(u32 pid)
{
	u32 index = pid * 40503u & (TASKS - 1), cpu = bpf_get_smp_processor_id();
	struct qosd_task *task = runq_tasks.lookup(&index);
	struct qosd_cpu *here;

	if (task && task->pid != pid) {
		here = runq_cpus.lookup(&cpu);
		if (task->waiting_since && here)
			here->unseen++;
		task->pid = pid;
		task->cgroup = NOBODY;
		task->waiting_since = 0;
	}
	return task;
}

static inline void find_root(struct qosd_task *task, struct cgroup *cgroup, u64 own)
{
	struct cgroup_subsys_state *css = &cgroup->self;
	struct kernfs_node *kn = NULL;
	struct qosd_root *root;
	u64 id = own;

	task->cgroup = own;
	task->slot = 0;
	task->watched = 0;
#pragma unroll
	for (int level = 0; level < DEPTH; level++) {
		if (!css)
			break;
		bpf_probe_read_kernel(&cgroup, sizeof(cgroup), &css->cgroup);
		bpf_probe_read_kernel(&kn, sizeof(kn), &cgroup->kn);
		bpf_probe_read_kernel(&id, sizeof(id), &kn->id);
		root = roots.lookup(&id);
		if (root) {
			task->slot = root->slot;
			task->watched = root->slot && root->flags & WATCHED;
			break;
		}
		bpf_probe_read_kernel(&css, sizeof(css), &css->parent);
	}
}

static inline u64 root_of(u64 slot)
{
	u32 index = slot;
	struct qosd_workload *workload = runq_workloads.lookup(&index);

	return workload ? workload->root : NOBODY;
}

static inline void add_blame(u64 victim, struct qosd_occupant *by, u64 ns, struct qosd_cpu *here)
{
	struct qosd_pair pair = { .victim = victim, .culprit = by->cgroup };
	struct qosd_blame none = {}, *found = runq_blames.lookup(&pair);

	if (!found) {
		runq_blames.insert(&pair, &none);
		here->new_blames++;
		found = runq_blames.lookup(&pair);
		if (!found)
			return;
	}
	lock_xadd(&found->ns, ns);
	lock_xadd(&found->count, 1);
	found->root = root_of(by->slot);
}

static inline void share_out(struct qosd_event *event, struct qosd_cpu *there, struct qosd_waits *waits,
			     struct qosd_cpu *here, u64 *slot)
{
	u64 since = event->monotonic_ns - event->wait_ns, until = event->monotonic_ns, from, ns;
	struct qosd_occupant by;

#pragma unroll
	for (int back = 0; back < RECENT; back++) {
		by = there->history[(there->head - back) & (HISTORY - 1)];
		if (!by.since || until <= since)
			break;
		from = by.since > since ? by.since : since;
		ns = until > from ? until - from : 0;
		until = from;
		if (by.cgroup == NOBODY) {
			waits->idle_ns += ns;
			continue;
		}
		add_blame(event->victim, &by, ns, here);
		if (ns > event->culprit_ns) {
			event->culprit = by.cgroup;
			event->culprit_ns = ns;
			*slot = by.slot;
		}
	}
	if (until > since)
		waits->unknown_ns += until - since;
}

static inline void look_closer(struct qosd_task *task, struct qosd_waits *waits, struct qosd_event *event,
			       struct qosd_cpu *here)
{
	u32 index = task->slot, cpu = task->cpu;
	struct qosd_workload *workload = runq_workloads.lookup(&index);
	struct qosd_cpu *there = runq_cpus.lookup(&cpu);
	u64 slot = 0, *last;

	if (!workload || !there)
		return;
	event->victim = workload->root;
	share_out(event, there, waits, here, &slot);
	if (!workload->threshold_ns || event->wait_ns < workload->threshold_ns)
		return;
	waits->breaches++;
	index = slot;
	workload = runq_workloads.lookup(&index);
	if (!workload)
		return;
	event->culprit_root = workload->root;
	last = workload->root && !workload->threshold_ns ? &waits->last_event : &waits->last_other;
	if (*last && event->monotonic_ns - *last < EVENT_GAP_NS)
		return;
	*last = event->monotonic_ns;
	if (runq_events.ringbuf_output(event, sizeof(*event), 0))
		here->lost_events++;
}

static inline void end_wait(struct qosd_task *task, u32 cpu, struct qosd_cpu *here, u64 now)
{
	u64 since = task->waiting_since;
	u32 index = task->slot * CPUS + cpu;
	struct qosd_waits *waits;
	struct qosd_event event = {};

	task->waiting_since = 0;
	if (!task->watched || now <= since)
		return;
	waits = runq_waits.lookup(&index);
	if (!waits)
		return;
	waits->slots[slot_of_ns(now - since)]++;
	waits->total_ns += now - since;
	if (now - since < BLAME_FLOOR_NS)
		return;
	event.monotonic_ns = now;
	event.wait_ns = now - since;
	event.victim_cgroup = task->cgroup;
	event.cpu = cpu;
	event.pid = task->pid;
	look_closer(task, waits, &event, here);
}

static inline void occupy(struct qosd_cpu *here, u64 cgroup, u32 slot, u64 now)
{
	u32 head = here->head + 1;
	struct qosd_occupant *occupant = &here->history[head & (HISTORY - 1)];

	occupant->cgroup = cgroup;
	occupant->slot = slot;
	occupant->since = now;
	here->head = head;
}

static inline int woken(struct task_struct *p, bool is_new)
{
	u64 now = bpf_ktime_get_ns();
	struct qosd_task *task;
	int on_cpu = 0;
	u32 pid = 0;

	bpf_probe_read_kernel(&on_cpu, sizeof(on_cpu), &p->on_cpu);
	if (on_cpu)
		return 0;
	bpf_probe_read_kernel(&pid, sizeof(pid), &p->pid);
	task = task_of(pid);
	if (!task || (task->waiting_since && !is_new))
		return 0;
	bpf_probe_read_kernel(&task->cpu, sizeof(task->cpu), &p->thread_info.cpu);
	task->waiting_since = now;
	add_cost(now);
	return 0;
}

int runq_wakeup(struct bpf_raw_tracepoint_args *ctx)
{
	return woken((struct task_struct *)ctx->args[0], false);
}

int runq_wakeup_new(struct bpf_raw_tracepoint_args *ctx)
{
	return woken((struct task_struct *)ctx->args[0], true);
}

static inline void leave(struct task_struct *prev, bool preempt, u32 cpu, u64 now)
{
	unsigned int state = 1;
	struct qosd_task *task;
	u32 pid = 0;

	bpf_probe_read_kernel(&pid, sizeof(pid), &prev->pid);
	bpf_probe_read_kernel(&state, sizeof(state), &prev->__state);
	if (!pid || (!preempt && state))
		return;
	task = task_of(pid);
	if (task) {
		task->waiting_since = now;
		task->cpu = cpu;
	}
}

static inline void enter(struct task_struct *next, u32 pid, u32 cpu, struct qosd_cpu *here, u64 now)
{
	struct qosd_task *task = task_of(pid);
	struct qosd_settings *settings;
	struct css_set *set = NULL;
	struct cgroup *cgroup = NULL;
	struct kernfs_node *kn = NULL;
	u32 first = 0;
	u64 id = 0;

	bpf_probe_read_kernel(&set, sizeof(set), &next->cgroups);
	bpf_probe_read_kernel(&cgroup, sizeof(cgroup), &set->dfl_cgrp);
	bpf_probe_read_kernel(&kn, sizeof(kn), &cgroup->kn);
	bpf_probe_read_kernel(&id, sizeof(id), &kn->id);
	settings = runq_settings.lookup(&first);
	if (!task || !settings)
		return;
	if (task->cgroup != id || task->generation != settings->generation) {
		task->generation = settings->generation;
		find_root(task, cgroup, id);
	}
	if (task->waiting_since)
		end_wait(task, cpu, here, now);
	occupy(here, id, task->slot, now);
}

int runq_switch(struct bpf_raw_tracepoint_args *ctx)
{
	u64 now = bpf_ktime_get_ns();
	u32 cpu = bpf_get_smp_processor_id(), pid = 0;
	struct task_struct *next = (struct task_struct *)ctx->args[2];
	struct qosd_cpu *here = runq_cpus.lookup(&cpu);

	if (!here)
		return 0;
	leave((struct task_struct *)ctx->args[1], ctx->args[0], cpu, now);
	bpf_probe_read_kernel(&pid, sizeof(pid), &next->pid);
	if (pid)
		enter(next, pid, cpu, here, now);
	else
		occupy(here, NOBODY, 0, now);
	add_cost(now);
	return 0;
}
