/*
 * A client that measures a xenstore daemon through its socket.
 *
 * usage: xenstore_client SOCKET NODES COUNT
 *
 * Fills the store with NODES nodes, a hundred to a directory, then prints for each kind of work a
 * line "name nanoseconds", the mean of COUNT (a quarter of it for what takes several requests). A
 * batch is 32 reads sent before the first reply is looked at.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include <xen/io/xs_wire.h>

#define FANOUT 100
#define BATCH 32

static const char *path;
static unsigned long nodes;
static char answer[XENSTORE_PAYLOAD_MAX + 1];

struct client {
	int fd;
	size_t start, end;
	char buffer[65536];
};

static struct client one, two;

static void die(const char *what)
{
	fprintf(stderr, "%s: %s\n", what, answer);
	exit(1);
}

static void open_client(struct client *c)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };

	strncpy(address.sun_path, path, sizeof(address.sun_path) - 1);
	c->fd = socket(AF_UNIX, SOCK_STREAM, 0);
	if (c->fd < 0 || connect(c->fd, (struct sockaddr *)&address, sizeof(address)))
		die("connect");
}

static void get(struct client *c, void *data, size_t size)
{
	char *at = data;

	while (size) {
		size_t part = c->end - c->start;

		if (!part) {
			ssize_t got = read(c->fd, c->buffer, sizeof(c->buffer));

			if (got <= 0)
				die("read");
			c->start = 0;
			c->end = part = got;
		}
		if (part > size)
			part = size;
		memcpy(at, c->buffer + c->start, part);
		c->start += part;
		at += part;
		size -= part;
	}
}

static unsigned int reply(struct client *c)
{
	struct xsd_sockmsg msg;

	get(c, &msg, sizeof(msg));
	if (msg.len > XENSTORE_PAYLOAD_MAX)
		die("length");
	get(c, answer, msg.len);
	answer[msg.len] = 0;
	return msg.type;
}

static void send_all(struct client *c, const char *data, size_t size)
{
	while (size) {
		ssize_t sent = write(c->fd, data, size);

		if (sent <= 0)
			die("write");
		data += sent;
		size -= sent;
	}
}

static size_t message(char *out, unsigned int type, unsigned int tx, const void *payload, size_t size)
{
	struct xsd_sockmsg msg = { type, 1, tx, size };

	memcpy(out, &msg, sizeof(msg));
	memcpy(out + sizeof(msg), payload, size);
	return sizeof(msg) + size;
}

static void ask(struct client *c, unsigned int type, unsigned int tx, const void *payload,
		size_t size)
{
	char out[512];

	send_all(c, out, message(out, type, tx, payload, size));
	if (reply(c) != type)
		die("reply");
}

/* The path of a node, with NUL and, if value is not negative, a value behind it. */
static size_t node(char *out, unsigned long number, long value)
{
	size_t size = sprintf(out, "/bench/%lu/%lu", number / FANOUT, number % FANOUT) + 1;

	return value < 0 ? size : size + sprintf(out + size, "%ld", value);
}

static unsigned long pick(void)
{
	static uint64_t state = 88172645463325252ULL;

	state ^= state << 13;
	state ^= state >> 7;
	state ^= state << 17;
	return state % nodes;
}

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1e9 + t.tv_nsec;
}

static void do_read(void)
{
	char payload[128];

	ask(&one, XS_READ, 0, payload, node(payload, pick(), -1));
}

static void do_batch(void)
{
	char out[BATCH * 128], payload[128];
	size_t size = 0;

	for (int i = 0; i < BATCH; i++)
		size += message(out + size, XS_READ, 0, payload, node(payload, pick(), -1));
	send_all(&one, out, size);
	for (int i = 0; i < BATCH; i++)
		if (reply(&one) != XS_READ)
			die("batch");
}

static void do_write(void)
{
	char payload[128];

	ask(&one, XS_WRITE, 0, payload, node(payload, pick(), pick()));
}

static void do_create(void)
{
	ask(&one, XS_MKDIR, 0, "/bench/0/new", 13);
	ask(&one, XS_RM, 0, "/bench/0/new", 13);
}

static void do_directory(void)
{
	char payload[128];
	size_t size = sprintf(payload, "/bench/%lu", pick() / FANOUT) + 1;

	ask(&one, XS_DIRECTORY, 0, payload, size);
}

static void do_transaction(void)
{
	char payload[128];
	unsigned long number = pick();
	unsigned int tx;

	ask(&one, XS_TRANSACTION_START, 0, "", 1);
	tx = strtoul(answer, NULL, 10);
	ask(&one, XS_READ, tx, payload, node(payload, number, -1));
	ask(&one, XS_WRITE, tx, payload, node(payload, number, number + 1));
	ask(&one, XS_TRANSACTION_END, tx, "T", 2);
}

/* From the write's first byte to the event's last; the writer's reply comes after. */
static double watch(unsigned long count)
{
	double total = 0;
	char payload[128];

	open_client(&two);
	ask(&two, XS_WATCH, 0, "/bench/0/0\0token", 17);
	if (reply(&two) != XS_WATCH_EVENT)
		die("first event");
	for (unsigned long i = 0; i < count; i++) {
		char out[256];
		size_t size = message(out, XS_WRITE, 0, payload, node(payload, 0, i));
		double start = now();

		send_all(&one, out, size);
		if (reply(&two) != XS_WATCH_EVENT)
			die("event");
		total += now() - start;
		if (reply(&one) != XS_WRITE)
			die("write");
	}
	return total / count;
}

static void measure(const char *name, void (*work)(void), unsigned long count)
{
	double start;

	for (unsigned long i = 0; i < count / 10 + 1; i++)
		work();
	start = now();
	for (unsigned long i = 0; i < count; i++)
		work();
	printf("%s %.0f\n", name, (now() - start) / count);
}

int main(int argc, char **argv)
{
	unsigned long count;
	double start;
	char payload[128];

	if (argc != 4)
		die("usage: xenstore_client SOCKET NODES COUNT");
	path = argv[1];
	nodes = strtoul(argv[2], NULL, 10);
	count = strtoul(argv[3], NULL, 10);
	open_client(&one);
	start = now();
	for (unsigned long i = 0; i < nodes; i++)
		ask(&one, XS_WRITE, 0, payload, node(payload, i, i));
	printf("fill %.0f\n", (now() - start) / nodes);
	measure("read", do_read, count);
	measure("batch", do_batch, count / BATCH + 1);
	measure("write", do_write, count);
	measure("directory", do_directory, count);
	measure("create", do_create, count / 4);
	measure("transaction", do_transaction, count / 4);
	printf("watch %.0f\n", watch(count / 4));
	return 0;
}
