/*
 * An open-loop load generator: it sends requests when their schedule says, whether or not earlier ones were
 * answered, and counts each latency from the *intended* start. A server that stalls 200 ms is then seen by
 * every request that was due in those 200 ms, and not by one only (coordinated omission).
 *
 * One thread, one epoll, one absolute timer. The request is a file of raw bytes; a reply is one line
 * (RESP's ":1\r\n"). Connections take requests in turn and pipeline them, so a slow reply never holds back
 * the sending of the next request.
 *
 *   openloop --connect PATH|ADDRESS:PORT ... --request FILE --output FILE --rate SECONDS:RATE ...
 *            --duration SECONDS [--connections N] [--fixed] [--seed N]
 *
 * --rate 0:400 --rate 4:900 sends 400 a second, and 900 from second 4 on. Arrivals are Poisson unless --fixed.
 *
 * Output, little endian: "openloop", u64 start (CLOCK_MONOTONIC, ns), u64 start (CLOCK_REALTIME, ns),
 * u64 count, u64 unanswered, then per request u32 intended start and u32 latency, both in microseconds, in the
 * order of intended starts. An unanswered request has the time it had waited when the generator gave up: a lower bound.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <math.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define NSEC_PER_SEC 1000000000ULL
#define DRAIN_NSEC (2 * NSEC_PER_SEC)
#define MAX_TARGETS 64
#define MAX_STEPS 64

struct step {
	double from;
	double rate;
};

struct record {
	uint32_t start_usec;
	uint32_t latency_usec;
};

/* Requests given to a connection are records first..given; sent and answered trail behind, in that order. */
struct connection {
	int fd;
	uint32_t *queue; /* indices into records */
	size_t given, sent, answered, capacity;
	size_t partial; /* bytes of the request being sent that the socket has taken */
	int wants_out;
	int line_begins;
};

static const char *targets[MAX_TARGETS];
static size_t nr_targets;
static struct step steps[MAX_STEPS];
static size_t nr_steps;
static size_t nr_connections = 8;
static double duration;
static int fixed;
static uint64_t seed = 1;
static const char *request_path, *output_path;

static char *request;
static size_t request_size;
static struct record *records;
static size_t nr_records, records_capacity, nr_answered;
static struct connection *connections;
static uint64_t started, started_realtime;
static int epoll_fd, timer_fd;

static void die(const char *what)
{
	fprintf(stderr, "openloop: %s: %s\n", what, strerror(errno));
	exit(1);
}

static void refuse(const char *what)
{
	fprintf(stderr, "openloop: %s\n", what);
	exit(2);
}

static void *grow(void *array, size_t *capacity, size_t size)
{
	*capacity = *capacity ? *capacity * 2 : 4096;
	array = reallocarray(array, *capacity, size);
	if (!array)
		die("memory");
	return array;
}

static uint64_t now(clockid_t clock)
{
	struct timespec ts;

	clock_gettime(clock, &ts);
	return ts.tv_sec * NSEC_PER_SEC + ts.tv_nsec;
}

/* splitmix64: the same seed gives the same schedule on every host, which the C library's rand() does not. */
static double uniform(void)
{
	uint64_t z = (seed += 0x9e3779b97f4a7c15ULL);

	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
	z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
	return ((z ^ (z >> 31)) >> 11) * 0x1.0p-53;
}

/* The intended start after `at`: a gap is drawn in units of work and spent at each step's own rate. */
static double next_arrival(double at)
{
	double gap = fixed ? 1.0 : -log(1.0 - uniform());
	size_t i;

	for (i = 0; i < nr_steps; i++) {
		double end = i + 1 < nr_steps ? steps[i + 1].from : INFINITY;

		if (at >= end)
			continue;
		if (at + gap / steps[i].rate <= end)
			return at + gap / steps[i].rate;
		gap -= (end - at) * steps[i].rate;
		at = end;
	}
	return INFINITY;
}

static int connect_unix(const char *path)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (strlen(path) >= sizeof(address.sun_path))
		refuse("socket path too long");
	strcpy(address.sun_path, path);
	if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof(address)) < 0)
		die(path);
	return fd;
}

/* Numeric IPv4 only: a resolver has no place in a static measuring tool. */
static int connect_tcp(const char *target)
{
	struct sockaddr_in address = {.sin_family = AF_INET};
	char host[INET_ADDRSTRLEN];
	unsigned int port;
	int fd, one = 1;

	if (sscanf(target, "%15[0-9.]:%u", host, &port) != 2 || port > 65535 || !inet_pton(AF_INET, host, &address.sin_addr))
		refuse("--connect wants /PATH or ADDRESS:PORT");
	address.sin_port = htons(port);
	fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof(address)) < 0)
		die(target);
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	return fd;
}

static void watch(size_t i, int wants_out)
{
	struct connection *c = &connections[i];
	struct epoll_event event = {.events = EPOLLIN | (wants_out ? EPOLLOUT : 0), .data.u64 = i};

	if (epoll_ctl(epoll_fd, EPOLL_CTL_MOD, c->fd, &event) < 0)
		die("epoll_ctl");
	c->wants_out = wants_out;
}

static void connect_all(void)
{
	size_t i;

	connections = calloc(nr_connections, sizeof(*connections));
	if (!connections)
		die("memory");
	for (i = 0; i < nr_connections; i++) {
		const char *target = targets[i % nr_targets];
		struct connection *c = &connections[i];
		struct epoll_event event = {.events = EPOLLIN, .data.u64 = i};

		c->fd = target[0] == '/' ? connect_unix(target) : connect_tcp(target);
		c->line_begins = 1;
		if (fcntl(c->fd, F_SETFL, O_NONBLOCK) < 0 || epoll_ctl(epoll_fd, EPOLL_CTL_ADD, c->fd, &event) < 0)
			die("connection");
	}
}

static void send_waiting(size_t i)
{
	struct connection *c = &connections[i];

	while (c->sent < c->given) {
		ssize_t n = send(c->fd, request + c->partial, request_size - c->partial, MSG_NOSIGNAL);

		if (n < 0 && errno == EAGAIN)
			break;
		if (n < 0)
			die("send");
		c->partial += n;
		if (c->partial == request_size) {
			c->partial = 0;
			c->sent++;
		}
	}
	if (c->wants_out != (c->sent < c->given))
		watch(i, !c->wants_out);
}

static void give(size_t i, uint32_t record)
{
	struct connection *c = &connections[i];

	if (c->given == c->capacity)
		c->queue = grow(c->queue, &c->capacity, sizeof(*c->queue));
	c->queue[c->given++] = record;
	send_waiting(i);
}

static void answered(struct connection *c, uint64_t at)
{
	struct record *r;

	if (c->answered == c->sent) {
		errno = EPROTO;
		die("a reply that nobody asked for");
	}
	r = &records[c->queue[c->answered++]];
	r->latency_usec = (at - started) / 1000 - r->start_usec;
	nr_answered++;
}

static void receive(size_t i)
{
	struct connection *c = &connections[i];
	char buffer[4096];
	ssize_t n = recv(c->fd, buffer, sizeof(buffer), 0);
	uint64_t at = now(CLOCK_MONOTONIC);
	ssize_t k;

	if (n < 0 && errno == EAGAIN)
		return;
	if (n <= 0) {
		errno = n ? errno : ECONNRESET;
		die("server");
	}
	for (k = 0; k < n; k++) {
		if (c->line_begins && buffer[k] == '-') {
			fprintf(stderr, "openloop: the server refuses: %.*s\n", (int)(n - k), buffer + k);
			exit(1);
		}
		c->line_begins = buffer[k] == '\n';
		if (c->line_begins)
			answered(c, at);
	}
}

static void arm(uint64_t at)
{
	struct itimerspec timer = {.it_value = {at / NSEC_PER_SEC, at % NSEC_PER_SEC}};

	if (timerfd_settime(timer_fd, TFD_TIMER_ABSTIME, &timer, NULL) < 0)
		die("timerfd_settime");
}

/* Sends everything that is due and returns the first intended start that is not. */
static double send_due(double arrival)
{
	while (arrival < duration && started + arrival * 1e9 <= now(CLOCK_MONOTONIC)) {
		if (nr_records == records_capacity)
			records = grow(records, &records_capacity, sizeof(*records));
		records[nr_records].start_usec = arrival * 1e6;
		give(nr_records % nr_connections, nr_records);
		nr_records++;
		arrival = next_arrival(arrival);
	}
	return arrival;
}

static void run(void)
{
	struct epoll_event events[64];
	uint64_t stop, expirations;
	double arrival = next_arrival(0);
	int n, k;

	started = now(CLOCK_MONOTONIC);
	started_realtime = now(CLOCK_REALTIME);
	stop = started + duration * 1e9 + DRAIN_NSEC;
	while (arrival < duration || nr_answered < nr_records) {
		arrival = send_due(arrival);
		if (now(CLOCK_MONOTONIC) >= stop)
			break;
		arm(arrival < duration ? started + (uint64_t)(arrival * 1e9) : stop);
		n = epoll_wait(epoll_fd, events, 64, -1);
		if (n < 0 && errno != EINTR)
			die("epoll_wait");
		for (k = 0; k < n; k++) {
			size_t i = events[k].data.u64;

			if (i == nr_connections) {
				if (read(timer_fd, &expirations, sizeof(expirations)) < 0 && errno != EAGAIN)
					die("timer");
				continue;
			}
			if (events[k].events & ~EPOLLOUT)
				receive(i);
			if (events[k].events & EPOLLOUT)
				send_waiting(i);
		}
	}
}

/* What never came is given the time it has waited, so that no percentile is flattered by leaving it out. */
static void close_unanswered(void)
{
	uint64_t at = (now(CLOCK_MONOTONIC) - started) / 1000;
	size_t i, k;

	for (i = 0; i < nr_connections; i++)
		for (k = connections[i].answered; k < connections[i].given; k++)
			records[connections[i].queue[k]].latency_usec = at - records[connections[i].queue[k]].start_usec;
}

static void write_output(void)
{
	uint64_t header[4] = {started, started_realtime, nr_records, nr_records - nr_answered};
	FILE *file = fopen(output_path, "wb");

	if (!file)
		die(output_path);
	fwrite("openloop", 8, 1, file);
	fwrite(header, sizeof(header), 1, file);
	fwrite(records, sizeof(*records), nr_records, file);
	if (fflush(file) || ferror(file) || fclose(file))
		die(output_path);
}

static void read_request(void)
{
	FILE *file = fopen(request_path, "rb");
	size_t capacity = 0;

	if (!file)
		die(request_path);
	do {
		request = grow(request, &capacity, 1);
		request_size += fread(request + request_size, 1, capacity - request_size, file);
	} while (request_size == capacity);
	fclose(file);
	if (!request_size)
		refuse("the request is empty");
}

static double number(const char *text)
{
	char *end;
	double value = strtod(text, &end);

	if (end == text || *end || !(value >= 0))
		refuse(text);
	return value;
}

static void add_step(char *text)
{
	char *colon = strchr(text, ':');
	double from;

	if (!colon || nr_steps == MAX_STEPS)
		refuse("--rate wants SECONDS:RATE");
	*colon = 0;
	from = number(text);
	if (nr_steps ? from <= steps[nr_steps - 1].from : from != 0)
		refuse("--rate: the first step is at 0, the others in order");
	steps[nr_steps++] = (struct step){from, number(colon + 1)};
	if (!(steps[nr_steps - 1].rate > 0))
		refuse("--rate: a rate above 0");
}

static void parse(int argc, char **argv)
{
	static const struct option options[] = {
		{"connect", 1, 0, 'c'},	    {"request", 1, 0, 'q'},  {"output", 1, 0, 'o'},
		{"rate", 1, 0, 'r'},	    {"duration", 1, 0, 'd'}, {"connections", 1, 0, 'n'},
		{"fixed", 0, 0, 'f'},	    {"seed", 1, 0, 's'},     {0},
	};
	int option;

	while ((option = getopt_long(argc, argv, "", options, NULL)) != -1) {
		switch (option) {
		case 'c':
			if (nr_targets == MAX_TARGETS)
				refuse("too many --connect");
			targets[nr_targets++] = optarg;
			break;
		case 'q': request_path = optarg; break;
		case 'o': output_path = optarg; break;
		case 'r': add_step(optarg); break;
		case 'd': duration = number(optarg); break;
		case 'n': nr_connections = number(optarg); break;
		case 'f': fixed = 1; break;
		case 's': seed = number(optarg); break;
		default: exit(2);
		}
	}
	if (!nr_targets || !nr_steps || !request_path || !output_path || !(duration > 0) || !nr_connections)
		refuse("--connect, --request, --output, --rate and --duration are needed");
}

int main(int argc, char **argv)
{
	struct epoll_event event = {.events = EPOLLIN};

	parse(argc, argv);
	read_request();
	epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
	event.data.u64 = nr_connections;
	if (epoll_fd < 0 || timer_fd < 0 || epoll_ctl(epoll_fd, EPOLL_CTL_ADD, timer_fd, &event) < 0)
		die("epoll");
	connect_all();
	run();
	close_unanswered();
	write_output();
	printf("%zu requests, %zu unanswered\n", nr_records, nr_records - nr_answered);
	return 0;
}
