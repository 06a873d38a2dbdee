/*
 * Transactions through /dev/xen/xenbus that somebody on the host interferes with.
 *
 * usage: xenstore_conflict COUNT
 *
 * Each: read counter, write poke outside of the transaction (whoever watches it may now change the
 * counter), write counter + 1 to counter, left and right, end. The answer to the end must be OK or
 * EAGAIN, every other answer OK. At the end: "committed N again N".
 */
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <xen/io/xs_wire.h>

static int bus;
static char answer[XENSTORE_PAYLOAD_MAX + 1];

static void die(const char *what)
{
	printf("%s: %s (%s)\n", what, answer, strerror(errno));
	exit(1);
}

static void get(void *data, size_t size)
{
	char *at = data;

	while (size) {
		ssize_t got = read(bus, at, size);

		if (got <= 0)
			die("read");
		at += got;
		size -= got;
	}
}

/* Returns the type of the answer, which is left in `answer`. */
static unsigned int ask(unsigned int type, unsigned int tx, const void *payload, unsigned int size)
{
	static unsigned int number;
	struct xsd_sockmsg msg = { type, ++number, tx, size };
	char out[sizeof(msg) + 256];

	memcpy(out, &msg, sizeof(msg));
	memcpy(out + sizeof(msg), payload, size);
	if (write(bus, out, sizeof(msg) + size) != (ssize_t)(sizeof(msg) + size))
		die("write");
	get(&msg, sizeof(msg));
	if (msg.len > XENSTORE_PAYLOAD_MAX || msg.req_id != number)
		die("message");
	get(answer, msg.len);
	answer[msg.len] = 0;
	return msg.type;
}

static void store(unsigned int tx, const char *name, unsigned long value)
{
	char payload[128];
	int name_size = snprintf(payload, sizeof(payload), "data/race/%s", name) + 1;
	int size = name_size + snprintf(payload + name_size, sizeof(payload) - name_size, "%lu", value);

	if (ask(XS_WRITE, tx, payload, size) != XS_WRITE)
		die(name);
}

int main(int argc, char **argv)
{
	unsigned long count = argc > 1 ? strtoul(argv[1], NULL, 10) : 1;
	unsigned long committed = 0, again = 0;

	bus = open("/dev/xen/xenbus", O_RDWR);
	if (bus < 0)
		die("/dev/xen/xenbus");
	for (unsigned long i = 0; i < count; i++) {
		unsigned int tx, type;
		unsigned long value;

		if (ask(XS_TRANSACTION_START, 0, "", 1) != XS_TRANSACTION_START)
			die("start");
		tx = strtoul(answer, NULL, 10);
		if (ask(XS_READ, tx, "data/race/counter", 18) != XS_READ)
			die("counter");
		value = strtoul(answer, NULL, 10) + 1;
		store(0, "poke", i);
		store(tx, "counter", value);
		store(tx, "left", value);
		store(tx, "right", value);
		type = ask(XS_TRANSACTION_END, tx, "T", 2);
		if (type == XS_TRANSACTION_END)
			committed++;
		else if (type == XS_ERROR && !strcmp(answer, "EAGAIN"))
			again++;
		else
			die("end");
	}
	printf("committed %lu again %lu\n", committed, again);
	return 0;
}
