// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/*
 * How long did the tasks of a workload wait for a CPU, and who was on that CPU meanwhile?
 *
 * A wait begins when a task is woken, or is switched out while still runnable; it ends when it is switched in.
 * A throttled task (cpu.max) is runnable too: the reader takes nr_throttled into account, this program can't.
 * Everything stays in maps that the daemon reads each tick; only a wait above the workload's threshold is sent.
 *
 * The kernel keeps the times itself (CONFIG_SCHED_INFO, what /proc/PID/schedstat shows): sched_info.last_queued is
 * when the task came to this run queue, run_delay what it has waited before, here or on another one. Both are in
 * time of the run queue's clock, which __schedule() has just set, and sched_info_arrive() adds the one to the other
 * only after this tracepoint, in prepare_task_switch(). So one hook sees a whole wait, and no clock is read.
 *
 * The scheduler's path is hot, so everything on it is an array: the lookup of an array is a few instructions of
 * the program itself on every kernel, while that of a hash, a per-CPU map or a task's storage is a call.
 */
#include "roots.h"
#include "cost.h"

#define HISTORY 32
#define TASKS (1u << 16)
#define NOWHERE 0xffffffffu

struct runq_settings {
	__u64 blame_floor_ns; /* shorter waits are counted, but nobody is blamed for them */
	__u64 event_gap_ns;   /* at most one event of BE and one of others per this long, workload and CPU */
	__u32 generation;     /* raised after each change of roots: tasks look their root up again */
	__u32 cpus;           /* possible ones */
};

struct runq_settings runq_settings SEC(".data.runq") = {
	.blame_floor_ns = 50000,
	.event_gap_ns = 100000000,
	.generation = 1,
	.cpus = 1,
};

/*
 * A task, found by its pid. Two whose pids are the same modulo TASKS share one, and the later takes it: of the
 * other's next wait only what it waits on its last CPU is seen then. 32 bytes, so never in two lines.
 */
struct task {
	__u64 waited; /* run_delay as it was when the task last got a CPU */
	__u64 cgroup; /* what slot and watched were looked up for; ids are never used twice */
	__u32 pid;
	__u32 generation;
	__u16 slot;
	__u16 watched;
	__u32 came_from; /* the CPU that it was last moved away from, or NOWHERE */
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, TASKS);
	__type(key, __u32);
	__type(value, struct task);
} runq_tasks SEC(".maps");

/* Written by the daemon alone. */
struct workload {
	__u64 root;
	__u64 threshold_ns; /* 0: never send an event */
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1); /* set before load */
	__type(key, __u32);
	__type(value, struct workload);
} runq_workloads SEC(".maps");

struct waits {
	__u64 slots[HISTOGRAM_SLOTS];
	__u64 total_ns;
	__u64 idle_ns;    /* of the blamed waits: the CPU was idle (waking up, or the task was pulled over) */
	__u64 unknown_ns; /* of the blamed waits: more than HISTORY switches ago */
	__u64 breaches;   /* waits above the threshold, sent or not */
	__u64 last_event; /* of a culprit in BE, or else */
	__u64 last_other;
	__u64 pad[2]; /* whole cache lines: no CPU writes in another's */
};

/* Element slot * cpus + cpu. Mapped by the daemon: reading it is no system call. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1); /* set before load */
	__type(key, __u32);
	__type(value, struct waits);
} runq_waits SEC(".maps");

struct pair {
	__u64 victim;  /* a root */
	__u64 culprit; /* the cgroup of the task that ran, not its root: it names the job */
};

struct blame {
	__u64 ns;
	__u64 count;
	__u64 root; /* the culprit's */
};

/* Not per CPU: rare enough (the floor) for atomic adds, and an LRU wants 128 elements for each CPU as it is. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 2048);
	__type(key, struct pair);
	__type(value, struct blame);
} runq_blames SEC(".maps");

struct occupant {
	__u64 cgroup; /* NOBODY: idle */
	__u64 since;
	__u64 slot;
};

struct cpu {
	struct occupant history[HISTORY];
	__u32 head;
	__u32 reserved;
	__u64 lost_events;
	__u64 new_blames;
	__u64 unseen; /* bcc's program alone: waits that were not counted */
	__u64 cost_ns; /* of the runs that were timed */
	__u64 pad[3];
};

/* One element per CPU, in an array rather than a per-CPU one. Mapped as well. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1); /* set to the number of possible CPUs before load */
	__type(key, __u32);
	__type(value, struct cpu);
} runq_cpus SEC(".maps");

struct event {
	__u64 monotonic_ns;
	__u64 wait_ns;
	__u64 victim;
	__u64 victim_cgroup;
	__u64 culprit; /* who had most of the wait; NOBODY: idle or unknown */
	__u64 culprit_root;
	__u64 culprit_ns;
	__u32 cpu;
	__u32 pid;
};

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 64 * 1024);
} runq_events SEC(".maps");

static __always_inline struct cpu *cpu_state(__u32 cpu)
{
	return bpf_map_lookup_elem(&runq_cpus, &cpu);
}

/* task->cpu is in thread_info with CONFIG_THREAD_INFO_IN_TASK; the helper is a call on most kernels. */
static __always_inline __u32 cpu_of(struct task_struct *task)
{
	return bpf_core_field_exists(task->thread_info.cpu) ? task->thread_info.cpu : bpf_get_smp_processor_id();
}

/* The multiplier is odd, so every index is taken once; neighbours in pid do not share a cache line. */
static __always_inline struct task *element(__u32 pid)
{
	__u32 index = pid * 40503u & (TASKS - 1);

	return bpf_map_lookup_elem(&runq_tasks, &index);
}

static __always_inline struct task *task_of(__u32 pid, __u64 waited)
{
	struct task *task = element(pid);

	if (task && task->pid != pid) {
		task->pid = pid;
		task->cgroup = NOBODY;
		task->waited = waited;
		task->came_from = NOWHERE;
	}
	return task;
}

static __always_inline void find_root(struct task *task, struct cgroup *cgroup, __u64 id)
{
	struct search search = { .css = &cgroup->self };

	if (task->cgroup == id && task->generation == runq_settings.generation)
		return;
	task->cgroup = id;
	task->generation = runq_settings.generation;
	find_nearest(&search);
	task->slot = search.slot;
	task->watched = search.slot && search.flags & WATCHED;
}

static __always_inline __u64 root_of(__u32 slot)
{
	struct workload *workload = bpf_map_lookup_elem(&runq_workloads, &slot);

	return workload ? workload->root : NOBODY;
}

static const struct blame no_blame;

/* New elements are counted: less what is there, that is what the LRU has thrown out. */
static __always_inline void blame(__u64 victim, struct occupant *culprit, __u64 ns, struct cpu *here)
{
	struct pair pair = { .victim = victim, .culprit = culprit->cgroup };
	struct blame *found = bpf_map_lookup_elem(&runq_blames, &pair);

	if (!found) {
		if (!bpf_map_update_elem(&runq_blames, &pair, &no_blame, BPF_NOEXIST))
			here->new_blames++;
		found = bpf_map_lookup_elem(&runq_blames, &pair);
		if (!found)
			return;
	}
	__sync_fetch_and_add(&found->ns, ns);
	__sync_fetch_and_add(&found->count, 1);
	found->root = root_of(culprit->slot);
}

struct share {
	struct event *event;
	struct cpu *there; /* where the victim waited from since until until */
	struct cpu *here;
	struct waits *waits;
	__u64 since;
	__u64 until;
	__u64 culprit_slot;
};

static long one_occupant_back(__u32 back, struct share *share)
{
	struct event *event = share->event;
	struct occupant *by = &share->there->history[(share->there->head - back) & (HISTORY - 1)];
	__u64 from = by->since > share->since ? by->since : share->since;
	__u64 ns = share->until > from ? share->until - from : 0;

	if (by->since == 0) /* not that many switches yet */
		return 1;
	share->until = from;
	if (by->cgroup == NOBODY) {
		share->waits->idle_ns += ns;
	} else {
		blame(event->victim, by, ns, share->here);
		if (ns > event->culprit_ns) {
			event->culprit = by->cgroup;
			event->culprit_ns = ns;
			share->culprit_slot = by->slot;
		}
	}
	return from <= share->since;
}

/* Share the wait out among those who had the CPU, latest first; the largest share goes into event. */
static __always_inline void share_out(struct share *share)
{
	bpf_loop(HISTORY, one_occupant_back, share, 0);
	if (share->until > share->since)
		share->waits->unknown_ns += share->until - share->since;
}

static __always_inline void send(struct event *event, __u64 *last, struct cpu *here, __u64 now)
{
	if (*last && now - *last < runq_settings.event_gap_ns)
		return;
	*last = now;
	event->monotonic_ns = bpf_ktime_get_ns(); /* the run queue's clock is another */
	if (bpf_ringbuf_output(&runq_events, event, sizeof(*event), 0))
		here->lost_events++;
}

struct wait {
	__u64 now;
	__u64 queued_ns; /* here */
	__u64 before_ns; /* before that, on the CPU that it was moved away from */
};

/*
 * Who had the CPU where the task waited before it was moved here, and then here. The clocks of two run queues may
 * be apart by as much as sched_clock() of two CPUs is: nothing where the TSC is stable.
 */
static __always_inline void look_closer(struct task *task, struct wait *wait, struct waits *waits,
					struct event *event, struct cpu *here)
{
	__u32 slot = task->slot;
	struct workload *workload = bpf_map_lookup_elem(&runq_workloads, &slot);
	struct share share = {
		.event = event, .there = here, .here = here, .waits = waits,
		.since = wait->now - wait->queued_ns, .until = wait->now,
	};

	if (!workload)
		return;
	event->victim = workload->root;
	share_out(&share);
	if (wait->before_ns) {
		share.until = wait->now - wait->queued_ns;
		share.since = share.until - wait->before_ns;
		share.there = cpu_state(task->came_from);
		if (share.there)
			share_out(&share);
		else
			waits->unknown_ns += wait->before_ns;
	}
	if (!workload->threshold_ns || event->wait_ns < workload->threshold_ns)
		return;
	waits->breaches++;
	slot = share.culprit_slot;
	workload = bpf_map_lookup_elem(&runq_workloads, &slot);
	if (workload)
		event->culprit_root = workload->root;
	/* A root without a threshold is BE's: word of it must not wait behind word of others. */
	if (event->culprit_root && workload && !workload->threshold_ns)
		send(event, &waits->last_event, here, wait->now);
	else
		send(event, &waits->last_other, here, wait->now);
}

static __always_inline void end_wait(struct task *task, __u32 cpu, struct cpu *here, struct wait *wait)
{
	__u64 ns = wait->queued_ns + wait->before_ns;
	__u32 index = task->slot * runq_settings.cpus + cpu;
	struct waits *waits = bpf_map_lookup_elem(&runq_waits, &index);

	if (!waits)
		return;
	waits->slots[histogram_slot(ns)]++;
	waits->total_ns += ns;
	if (ns < runq_settings.blame_floor_ns)
		return;

	struct event event = { .wait_ns = ns, .victim_cgroup = task->cgroup, .cpu = cpu, .pid = task->pid };
	look_closer(task, wait, waits, &event, here);
}

static __always_inline void occupy(struct cpu *here, __u64 cgroup, __u32 slot, __u64 now)
{
	__u32 head = here->head + 1;
	struct occupant *occupant = &here->history[head & (HISTORY - 1)];

	occupant->cgroup = cgroup;
	occupant->slot = slot;
	occupant->since = now;
	here->head = head;
}

static __always_inline void enter(struct task_struct *next, __u32 cpu, struct cpu *here, __u64 now)
{
	__u64 queued = next->sched_info.last_queued, waited = next->sched_info.run_delay;
	struct cgroup *cgroup = task_cgroup(next);
	__u64 id = cgroup->kn->id;
	struct task *task = task_of(next->pid, waited);
	struct wait wait = { .now = now };

	if (!task)
		return;
	find_root(task, cgroup, id);
	if (queued && now > queued)
		wait.queued_ns = now - queued;
	if (waited > task->waited)
		wait.before_ns = waited - task->waited;
	task->waited = waited + wait.queued_ns; /* as sched_info_arrive() will have it */
	if (task->watched && queued)
		end_wait(task, cpu, here, &wait);
	occupy(here, id, task->slot, now);
}

/* The first three arguments only: prev_state came in 5.18 and has moved since. */
SEC("tp_btf/sched_switch")
int BPF_PROG(runq_switch, bool preempt, struct task_struct *prev, struct task_struct *next)
{
	__u64 now = next->se.cfs_rq->rq->clock; /* every task has a cfs_rq of its CPU, whatever its class: set_task_rq() */
	__u32 cpu = cpu_of(prev);
	struct cpu *here = cpu_state(cpu);
	__u64 began;

	if (!here)
		return 0;
	began = is_sampled(now) ? bpf_ktime_get_ns() : 0;
	if (next->pid)
		enter(next, cpu, here, now);
	else
		occupy(here, NOBODY, 0, now);
	if (began)
		here->cost_ns += cost_since(began);
	return 0;
}

/* Rarer than a switch, and before the task's CPU is another. Of a task that nobody waits for it means nothing. */
SEC("tp_btf/sched_migrate_task")
int BPF_PROG(runq_migrate, struct task_struct *moved)
{
	struct task *task = element(moved->pid);

	if (task && task->pid == (__u32)moved->pid)
		task->came_from = cpu_of(moved);
	return 0;
}
