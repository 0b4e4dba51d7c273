/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The loads of bench.scenes: a latency-sensitive service that times itself, and what may disturb it.
 *
 *   load calibrate                                  prints how many turns of work take a millisecond
 *   load CGROUP serve LOG FILE DEVICE TURNS         four kinds of requests, open loop, until it is killed
 *   load CGROUP pace LOG TURNS                      the same work under SCHED_FIFO: how fast the CPU is
 *   load CGROUP spin SECONDS THREADS DUTY_PCT
 *   load CGROUP thrash SECONDS THREADS MIB          walks through memory by cache lines
 *   load CGROUP grow SECONDS LEAVE_MIB MIB_PER_SEC  holds memory until MemAvailable is down to so much
 *   load CGROUP stream SECONDS DEVICE MIB_PER_SEC   reads through the page cache
 *   load CGROUP disk SECONDS DEVICE THREADS KIB r|w O_DIRECT at random places
 *   load CGROUP flood SECONDS THREADS BYTES         UDP over the loopback device
 *   load CGROUP forks SECONDS PARALLEL TURNS        short-lived processes, one after the other
 *
 * A request's latency counts from when it was due, so a stall is seen by every request due in it. LOG gets a
 * struct record for each; `pace` writes its turns there as kind PACE.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define NSEC 1000000000ull
#define PAGE 4096
#define MIB (1ull << 20)

enum kind { CPU, MEMORY, DISK, NET, PACE };

struct record {
	uint64_t due_ns;
	uint32_t latency_usec;
	uint32_t kind;
};

static char **args;
static int log_fd = -1;
static uint64_t until;
static volatile uint64_t sink;

static void die(const char *what)
{
	fprintf(stderr, "load: %s: %s\n", what, strerror(errno));
	exit(1);
}

static uint64_t now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * NSEC + ts.tv_nsec;
}

static void sleep_until(uint64_t at)
{
	struct timespec ts = { at / NSEC, at % NSEC };

	while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &ts, NULL) == EINTR)
		;
}

static uint64_t next(uint64_t *state)
{
	*state ^= *state << 13;
	*state ^= *state >> 7;
	*state ^= *state << 17;
	return *state;
}

static void work(uint64_t turns)
{
	uint64_t state = 88172645463325252ull;

	while (turns--)
		next(&state);
	sink = state;
}

static int open_or_die(const char *path, int flags)
{
	int fd = open(path, flags | O_CLOEXEC, 0644);

	if (fd < 0)
		die(path);
	return fd;
}

static void join_cgroup(const char *path)
{
	char procs[4096];
	int fd;

	snprintf(procs, sizeof(procs), "%s/cgroup.procs", path);
	fd = open_or_die(procs, O_WRONLY);
	if (write(fd, "0\n", 2) != 2)
		die(procs);
	close(fd);
}

/* The kernel's own OOM killer is to take a load, and nothing else. */
static void be_first_to_go(void)
{
	int fd = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);

	if (fd < 0 || write(fd, "1000", 4) != 4)
		die("oom_score_adj");
	close(fd);
}

static void in_threads(int count, void *(*function)(void *))
{
	pthread_t threads[64];
	long i;

	for (i = 0; i < count && i < 64; i++)
		if (pthread_create(&threads[i], NULL, function, (void *)i))
			die("pthread_create");
	for (i = 0; i < count && i < 64; i++)
		pthread_join(threads[i], NULL);
}

static void calibrate(void)
{
	uint64_t best = UINT64_MAX, turns = 100000, i;

	for (i = 0; i < 30; i++) {
		uint64_t begun = now(), took;

		work(turns);
		took = now() - begun;
		best = took < best ? took : best;
	}
	printf("%llu\n", (unsigned long long)(turns * 1000000 / best));
}

/* ---- the service ---- */

struct server {
	enum kind kind;
	unsigned int rate;
	void (*request)(struct server *server);
	int fd, peer;
	uint64_t size, seed, turns;
	char *buffer;
};

static void on_cpu(struct server *server)
{
	work(server->turns);
}

/* Cached pages that are seldom read, and some fresh ones: what is short when memory is. */
static void on_memory(struct server *server)
{
	size_t fresh = 16 * PAGE, at;
	char *pages = mmap(NULL, fresh, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	int i;

	if (pages == MAP_FAILED)
		die("mmap");
	for (at = 0; at < fresh; at += PAGE)
		pages[at] = 1;
	for (i = 0; i < 16; i++)
		if (pread(server->fd, server->buffer, PAGE, next(&server->seed) % (server->size / PAGE) * PAGE) != PAGE)
			die("pread");
	munmap(pages, fresh);
}

static void on_disk(struct server *server)
{
	if (pread(server->fd, server->buffer, PAGE, next(&server->seed) % (server->size / PAGE) * PAGE) != PAGE)
		die("pread");
}

static void on_net(struct server *server)
{
	if (send(server->fd, server->buffer, 64, 0) != 64 || recv(server->fd, server->buffer, 64, MSG_WAITALL) != 64)
		die("loopback");
}

static void *echo(void *argument)
{
	struct server *server = argument;
	char buffer[64];

	while (recv(server->peer, buffer, 64, MSG_WAITALL) == 64)
		if (send(server->peer, buffer, 64, 0) != 64)
			break;
	return NULL;
}

static void connect_to_itself(struct server *server)
{
	struct sockaddr_in address = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	socklen_t size = sizeof(address);
	int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), one = 1;
	pthread_t thread;

	if (bind(listener, (struct sockaddr *)&address, size) || listen(listener, 1) ||
	    getsockname(listener, (struct sockaddr *)&address, &size))
		die("listen");
	server->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (connect(server->fd, (struct sockaddr *)&address, size))
		die("connect");
	server->peer = accept(listener, NULL, NULL);
	setsockopt(server->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	setsockopt(server->peer, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	if (pthread_create(&thread, NULL, echo, server))
		die("pthread_create");
}

/* Gaps vary by a half around the mean, so that the kinds do not fall into step. */
static void *serve_one(void *argument)
{
	struct server *server = argument;
	uint64_t gap = NSEC / server->rate, due = now();

	for (;;) {
		struct record record = { .kind = server->kind };

		due += gap / 2 + next(&server->seed) % gap;
		sleep_until(due);
		server->request(server);
		record.due_ns = due;
		record.latency_usec = (now() - due) / 1000;
		if (write(log_fd, &record, sizeof(record)) != sizeof(record))
			die("log");
	}
	return NULL;
}

static struct server servers[] = {
	{ .kind = CPU, .rate = 60, .request = on_cpu },
	{ .kind = MEMORY, .rate = 30, .request = on_memory },
	{ .kind = DISK, .rate = 50, .request = on_disk },
	{ .kind = NET, .rate = 30, .request = on_net },
};
#define NR_SERVERS (sizeof(servers) / sizeof(*servers))

static void *serve_nth(void *number)
{
	return serve_one(&servers[(long)number]);
}

/* Page cache belongs to the cgroup that reads it first. */
static void warm(struct server *server)
{
	uint64_t at;

	for (at = 0; at < server->size; at += PAGE)
		if (pread(server->fd, server->buffer, PAGE, at) != PAGE)
			die("pread");
}

static void serve(void)
{
	struct stat stat;
	size_t i;

	log_fd = open_or_die(args[0], O_WRONLY | O_APPEND | O_CREAT);
	for (i = 0; i < NR_SERVERS; i++) {
		servers[i].seed = 0x9e3779b97f4a7c15ull * (i + 1);
		servers[i].turns = strtoull(args[3], NULL, 10);
		servers[i].buffer = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	}
	servers[MEMORY].fd = open_or_die(args[1], O_RDONLY);
	posix_fadvise(servers[MEMORY].fd, 0, 0, POSIX_FADV_RANDOM);
	fstat(servers[MEMORY].fd, &stat);
	servers[MEMORY].size = stat.st_size;
	warm(&servers[MEMORY]);
	servers[DISK].fd = open_or_die(args[2], O_RDONLY | O_DIRECT);
	servers[DISK].size = 64 * MIB;
	connect_to_itself(&servers[NET]);
	in_threads(NR_SERVERS, serve_nth);
}

static void pace(void)
{
	struct sched_param param = { .sched_priority = 10 };
	struct server server = { .kind = PACE, .rate = 25, .request = on_cpu, .seed = 7 };

	log_fd = open_or_die(args[0], O_WRONLY | O_APPEND | O_CREAT);
	server.turns = strtoull(args[1], NULL, 10);
	if (sched_setscheduler(0, SCHED_FIFO, &param))
		die("sched_setscheduler");
	serve_one(&server);
}

/* ---- what disturbs it ---- */

static void *spin_one(void *unused)
{
	uint64_t on = 20000000ull * strtoull(args[2], NULL, 10) / 100, period = 20000000ull;

	(void)unused;
	while (now() < until) {
		uint64_t begun = now();

		while (now() - begun < on)
			work(2000);
		if (on < period)
			sleep_until(begun + period);
	}
	return NULL;
}

static void *thrash_one(void *unused)
{
	size_t size = strtoull(args[2], NULL, 10) * MIB, at;
	char *area = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	(void)unused;
	if (area == MAP_FAILED)
		die("mmap");
	while (now() < until)
		for (at = 0; at < size; at += 64)
			area[at]++;
	return NULL;
}

static uint64_t available(void)
{
	char text[256], *line;
	int fd = open_or_die("/proc/meminfo", O_RDONLY);
	ssize_t n = read(fd, text, sizeof(text) - 1);

	close(fd);
	text[n > 0 ? n : 0] = 0;
	line = strstr(text, "MemAvailable:");
	if (!line)
		die("MemAvailable");
	return strtoull(line + 13, NULL, 10) * 1024;
}

static void grow(void)
{
	uint64_t leave = strtoull(args[1], NULL, 10) * MIB, rate = strtoull(args[2], NULL, 10);
	uint64_t due = now(), chunk = MIB;

	while (now() < until) {
		due += NSEC / rate;
		if (available() > leave + chunk) {
			char *held = mmap(NULL, chunk, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);

			if (held == MAP_FAILED)
				die("mmap");
		}
		sleep_until(due);
	}
}

static void stream(void)
{
	int fd = open_or_die(args[1], O_RDONLY);
	uint64_t rate = strtoull(args[2], NULL, 10), due = now(), at = 256 * MIB;
	char *buffer = malloc(MIB);

	while (now() < until) {
		due += NSEC / rate;
		if (pread(fd, buffer, MIB, at) != (ssize_t)MIB)
			at = 256 * MIB;
		at += MIB;
		sleep_until(due);
	}
}

static void *disk_one(void *number)
{
	size_t size = strtoull(args[3], NULL, 10) * 1024;
	int writes = args[4][0] == 'w';
	int fd = open_or_die(args[1], (writes ? O_WRONLY : O_RDONLY) | O_DIRECT);
	char *buffer = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	uint64_t seed = 77 + (long)number, at;

	memset(buffer, 'x', size);
	while (now() < until) {
		at = 256 * MIB + next(&seed) % (512 * MIB / size) * size;
		if ((writes ? pwrite(fd, buffer, size, at) : pread(fd, buffer, size, at)) != (ssize_t)size)
			die("disk");
	}
	return NULL;
}

static void *flood_one(void *unused)
{
	struct sockaddr_in address = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	socklen_t length = sizeof(address);
	size_t size = strtoull(args[2], NULL, 10);
	int to = socket(AF_INET, SOCK_DGRAM, 0), from = socket(AF_INET, SOCK_DGRAM, 0);
	char buffer[65536] = { 0 };

	(void)unused;
	if (bind(to, (struct sockaddr *)&address, length) || getsockname(to, (struct sockaddr *)&address, &length) ||
	    connect(from, (struct sockaddr *)&address, length))
		die("flood");
	while (now() < until) {
		send(from, buffer, size, 0);
		recv(to, buffer, sizeof(buffer), MSG_DONTWAIT);
	}
	return NULL;
}

static void *forks_one(void *unused)
{
	uint64_t turns = strtoull(args[2], NULL, 10);

	(void)unused;
	while (now() < until) {
		pid_t pid = fork();

		if (pid == 0) {
			work(turns);
			_exit(0);
		}
		if (pid > 0)
			waitpid(pid, NULL, 0);
	}
	return NULL;
}

static void disturb(const char *mode)
{
	until = now() + (uint64_t)(strtod(args[0], NULL) * NSEC);
	be_first_to_go();
	if (!strcmp(mode, "spin"))
		in_threads(atoi(args[1]), spin_one);
	else if (!strcmp(mode, "thrash"))
		in_threads(atoi(args[1]), thrash_one);
	else if (!strcmp(mode, "grow"))
		grow();
	else if (!strcmp(mode, "stream"))
		stream();
	else if (!strcmp(mode, "disk"))
		in_threads(atoi(args[2]), disk_one);
	else if (!strcmp(mode, "flood"))
		in_threads(atoi(args[1]), flood_one);
	else if (!strcmp(mode, "forks"))
		in_threads(atoi(args[1]), forks_one);
	else
		exit(2);
}

int main(int argc, char **argv)
{
	if (argc == 2 && !strcmp(argv[1], "calibrate")) {
		calibrate();
		return 0;
	}
	if (argc < 5)
		return 2;
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	join_cgroup(argv[1]);
	args = argv + 3;
	if (!strcmp(argv[2], "serve"))
		serve();
	else if (!strcmp(argv[2], "pace"))
		pace();
	else
		disturb(argv[2]);
	return 0;
}
