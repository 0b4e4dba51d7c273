// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/*
 * How long did the tasks of a workload wait for a CPU, and who was on that CPU meanwhile?
 *
 * A wait begins when a task is woken, or is switched out while still runnable; it ends when it is switched in.
 * A throttled task (cpu.max) is runnable too: the reader takes nr_throttled into account, this program can't.
 * Everything stays in maps that the daemon reads each tick; only a wait above the workload's threshold is sent.
 */
#include "roots.h"

#define HISTORY 32

struct runq_settings {
	__u64 generation;     /* raised after each change of roots: tasks look their root up again */
	__u64 blame_floor_ns; /* shorter waits are counted, but nobody is blamed for them */
	__u64 event_gap_ns;   /* at most one event per this long, workload and CPU */
	__u32 watch_all;      /* also tasks outside of every root, under their own cgroup's id */
	__u32 reserved;
};

struct runq_settings runq_settings SEC(".data.runq") = {
	.generation = 1,
	.blame_floor_ns = 50000,
	.event_gap_ns = 100000000,
};

struct task {
	__u64 waiting_since; /* 0: not waiting */
	__u64 cgroup;        /* what root and flags were looked up for */
	__u64 generation;
	__u64 root;          /* NOBODY: in no root */
	__u32 flags;
	__u32 cpu;           /* where it waits */
};

struct {
	__uint(type, BPF_MAP_TYPE_TASK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct task);
} runq_tasks SEC(".maps");

struct waits {
	__u64 slots[HISTOGRAM_SLOTS];
	__u64 total_ns;
	__u64 idle_ns;    /* of the blamed waits: the CPU was idle (waking up, or the task was pulled over) */
	__u64 unknown_ns; /* of the blamed waits: more than HISTORY switches ago */
	__u64 breaches;   /* waits above the threshold, sent or not */
	__u64 last_event;
};

/* Made a plain per-CPU hash before load unless runq_settings.watch_all: then there are no more keys than roots. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_PERCPU_HASH);
	__uint(max_entries, 1024);
	__type(key, __u64);
	__type(value, struct waits);
} runq_waits SEC(".maps");

struct pair {
	__u64 victim;  /* a root, or the task's own cgroup where runq_settings.watch_all */
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
	__u64 root;
	__u64 since;
};

/* One element per CPU, in an array rather than a per-CPU one: its lookup is inlined on every kernel. */
struct cpu {
	struct occupant history[HISTORY];
	__u32 head;
	__u32 reserved;
	__u64 lost_events;
	__u64 new_waits;
	__u64 new_blames;
	__u64 no_memory; /* no task storage or no room in runq_waits: the wait was not counted */
	__u64 pad[3];    /* whole cache lines: no CPU writes in another's */
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
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

/* Ids are never used twice, so a moved task is noticed. */
static __always_inline void find_root(struct task *state, struct cgroup *cgroup, __u64 id)
{
	struct search search = { .css = &cgroup->self };

	if (state->cgroup == id && state->generation == runq_settings.generation)
		return;
	state->cgroup = id;
	state->generation = runq_settings.generation;
	find_nearest(&search);
	state->root = search.root;
	state->flags = search.flags | (runq_settings.watch_all ? WATCHED : 0);
}

static __always_inline struct cpu *cpu_state(__u32 cpu)
{
	return bpf_map_lookup_elem(&runq_cpus, &cpu);
}

static __always_inline struct task *task_state(struct task_struct *task)
{
	struct task *state = bpf_task_storage_get(&runq_tasks, task, 0, BPF_LOCAL_STORAGE_GET_F_CREATE);
	struct cpu *here;

	if (!state && (here = cpu_state(bpf_get_smp_processor_id())))
		here->no_memory++;
	return state;
}

static const struct waits no_waits;
static const struct blame no_blame;

/* New elements are counted: less what is there, that is what the LRU has thrown out. */
static __always_inline struct waits *waits_of(__u64 victim, struct cpu *here)
{
	struct waits *found = bpf_map_lookup_elem(&runq_waits, &victim);

	if (found)
		return found;
	if (!bpf_map_update_elem(&runq_waits, &victim, &no_waits, BPF_NOEXIST))
		here->new_waits++;
	found = bpf_map_lookup_elem(&runq_waits, &victim);
	if (!found)
		here->no_memory++;
	return found;
}

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
	found->root = culprit->root;
}

struct share {
	struct event *event;
	struct cpu *there; /* where the victim waited */
	struct cpu *here;
	struct waits *waits;
	__u64 since;
	__u64 until;
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
			event->culprit_root = by->root;
			event->culprit_ns = ns;
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

static __always_inline void send_if_breach(struct event *event, struct waits *waits, struct cpu *here)
{
	struct root *root = bpf_map_lookup_elem(&roots, &event->victim);

	if (!root || !root->threshold_ns || event->wait_ns < root->threshold_ns)
		return;
	waits->breaches++;
	if (waits->last_event && event->monotonic_ns - waits->last_event < runq_settings.event_gap_ns)
		return;
	waits->last_event = event->monotonic_ns;
	if (bpf_ringbuf_output(&runq_events, event, sizeof(*event), 0))
		here->lost_events++;
}

static __always_inline void end_wait(struct task *state, __u32 pid, __u32 cpu, struct cpu *here, __u64 now)
{
	__u64 victim = state->root ? state->root : state->cgroup;
	__u64 since = state->waiting_since;
	struct waits *waits;

	state->waiting_since = 0;
	if (!(state->flags & WATCHED) || now <= since)
		return;
	waits = waits_of(victim, here);
	if (!waits)
		return;
	waits->slots[histogram_slot(now - since)]++;
	waits->total_ns += now - since;
	if (now - since < runq_settings.blame_floor_ns)
		return;

	struct event event = {
		.monotonic_ns = now, .wait_ns = now - since, .victim = victim, .victim_cgroup = state->cgroup,
		.cpu = cpu, .pid = pid,
	};
	struct share share = {
		.event = &event, .there = cpu_state(state->cpu), .here = here, .waits = waits,
		.since = since, .until = now,
	};
	if (share.there)
		share_out(&share);
	send_if_breach(&event, waits, here);
}

static __always_inline void occupy(struct cpu *here, __u64 cgroup, __u64 root, __u64 now)
{
	__u32 head = here->head + 1;
	struct occupant *slot = &here->history[head & (HISTORY - 1)];

	slot->cgroup = cgroup;
	slot->root = root;
	slot->since = now;
	here->head = head;
}

static __always_inline int woken(struct task_struct *task)
{
	struct task *state;

	/* Woken before it was switched out: it never left the CPU. on_cpu is only there with CONFIG_SMP. */
	if (bpf_core_field_exists(task->on_cpu) && task->on_cpu)
		return 0;
	state = task_state(task);
	if (!state || state->waiting_since)
		return 0;
	if (bpf_core_field_exists(task->thread_info.cpu))
		state->cpu = task->thread_info.cpu;
	else
		state->cpu = bpf_get_smp_processor_id();
	state->waiting_since = bpf_ktime_get_ns();
	return 0;
}

SEC("tp_btf/sched_wakeup")
int BPF_PROG(runq_wakeup, struct task_struct *task)
{
	return woken(task);
}

SEC("tp_btf/sched_wakeup_new")
int BPF_PROG(runq_wakeup_new, struct task_struct *task)
{
	return woken(task);
}

/* The first three arguments only: prev_state came in 5.18 and has moved since. */
SEC("tp_btf/sched_switch")
int BPF_PROG(runq_switch, bool preempt, struct task_struct *prev, struct task_struct *next)
{
	__u64 now = bpf_ktime_get_ns();
	__u32 cpu = bpf_get_smp_processor_id();
	struct cpu *here = cpu_state(cpu);
	struct cgroup *cgroup;
	struct task *state;
	__u64 id;

	if (!here)
		return 0;
	if (prev->pid && (preempt || prev->__state == 0 /* TASK_RUNNING */)) {
		state = task_state(prev);
		if (state) {
			state->waiting_since = now;
			state->cpu = cpu;
		}
	}
	if (!next->pid) {
		occupy(here, NOBODY, NOBODY, now);
		return 0;
	}
	cgroup = task_cgroup(next);
	id = cgroup->kn->id;
	state = task_state(next);
	if (!state) {
		occupy(here, id, NOBODY, now);
		return 0;
	}
	find_root(state, cgroup, id);
	if (state->waiting_since)
		end_wait(state, next->pid, cpu, here, now);
	occupy(here, id, state->root, now);
	return 0;
}
