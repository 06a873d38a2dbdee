/*
 * What Xen's xenstored needs of a Xen host, for a process that has none: LD_PRELOAD it.
 *
 * Every domain that can be exists and lives. Its xenstore page is the file ring-DOMID in the folder that
 * HVMLITE_SHIM names. Kicks by a domain are 32-bit numbers, 1000 plus its id, written to the pipe
 * kicks there; kicks for a domain go nowhere: whoever plays the domain looks into the page.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <xenctrl.h>
#include <xenevtchn.h>
#include <xengnttab.h>

#define PAGE 4096
#define FIRST_PORT 1000

static int handle;
static int kicks = -1;

static int shim_open(const char *name, int flags)
{
	char path[512];

	snprintf(path, sizeof(path), "%s/%s", getenv("HVMLITE_SHIM"), name);
	return syscall(SYS_openat, AT_FDCWD, path, flags, 0);
}

/* The files by which a domain 0's kernel tells where its own ring is. */
int open(const char *path, int flags, ...)
{
	va_list arguments;
	int mode;

	va_start(arguments, flags);
	mode = flags & O_CREAT ? va_arg(arguments, int) : 0;
	va_end(arguments);
	if (!strcmp(path, "/proc/xen/xsd_kva"))
		return shim_open("ring-0", O_RDWR);
	if (!strcmp(path, "/proc/xen/xsd_port"))
		return shim_open("port", O_RDONLY);
	return syscall(SYS_openat, AT_FDCWD, path, flags, mode);
}

xc_interface *xc_interface_open(xentoollog_logger *a, xentoollog_logger *b, unsigned int flags)
{
	return (xc_interface *)&handle;
}

int xc_interface_close(xc_interface *xch)
{
	return 0;
}

int xc_domain_getinfo(xc_interface *xch, uint32_t first, unsigned int max, xc_dominfo_t *info)
{
	if (first >= DOMID_FIRST_RESERVED)
		return 0;
	memset(info, 0, sizeof(*info));
	info->domid = first;
	info->running = 1;
	return 1;
}

xengnttab_handle *xengnttab_open(xentoollog_logger *logger, unsigned int flags)
{
	return (xengnttab_handle *)&handle;
}

int xengnttab_close(xengnttab_handle *xgt)
{
	return 0;
}

int xengnttab_set_max_grants(xengnttab_handle *xgt, uint32_t max)
{
	return 0;
}

void *xengnttab_map_grant_ref(xengnttab_handle *xgt, uint32_t domid, uint32_t ref, int prot)
{
	char name[32];
	void *page;
	int fd;

	snprintf(name, sizeof(name), "ring-%u", domid);
	fd = shim_open(name, O_RDWR);
	if (fd < 0)
		return NULL;
	page = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	close(fd);
	return page == MAP_FAILED ? NULL : page;
}

int xengnttab_unmap(xengnttab_handle *xgt, void *start, uint32_t count)
{
	return munmap(start, count * PAGE);
}

xenevtchn_handle *xenevtchn_open(xentoollog_logger *logger, unsigned int flags)
{
	/* Open for writing too, so that it never comes to an end. */
	kicks = shim_open("kicks", O_RDWR | O_NONBLOCK);
	return kicks < 0 ? NULL : (xenevtchn_handle *)&handle;
}

xenevtchn_handle *xenevtchn_fdopen(xentoollog_logger *logger, int fd, unsigned int flags)
{
	return (xenevtchn_handle *)&handle;
}

int xenevtchn_fd(xenevtchn_handle *xce)
{
	return kicks;
}

xenevtchn_port_or_error_t xenevtchn_bind_virq(xenevtchn_handle *xce, unsigned int virq)
{
	return 1;
}

xenevtchn_port_or_error_t xenevtchn_bind_interdomain(xenevtchn_handle *xce, uint32_t domid,
						     evtchn_port_t port)
{
	return FIRST_PORT + domid;
}

xenevtchn_port_or_error_t xenevtchn_pending(xenevtchn_handle *xce)
{
	uint32_t port;

	return read(kicks, &port, sizeof(port)) == sizeof(port) ? (int)port : -1;
}

int xenevtchn_unmask(xenevtchn_handle *xce, evtchn_port_t port)
{
	return 0;
}

int xenevtchn_notify(xenevtchn_handle *xce, evtchn_port_t port)
{
	return 0;
}

int xenevtchn_unbind(xenevtchn_handle *xce, evtchn_port_t port)
{
	return 0;
}
