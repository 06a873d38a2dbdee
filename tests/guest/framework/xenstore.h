/*
 * A small xenstore client (xenstore.c), for guests that have a device's frontend.
 */
#ifndef GUEST_XENSTORE_H
#define GUEST_XENSTORE_H

#include "guest.h"

#include <xen/io/xenbus.h>
#include <xen/io/xs_wire.h>

/* False: there is no store. Its functions end the guest with error() if the store goes silent. */
bool xs_init(void);
/* The value with a zero behind it, cut to the room; returns its whole length, or -1. */
int xs_read(const char *path, char *value, u32 room);
int xs_write(const char *path, const char *value);
int xs_remove(const char *path);
/* A node that holds a decimal number; 0 if there is none. */
void xs_set(const char *folder, const char *name, u32 value);
u32 xs_number(const char *folder, const char *name);
/* Reads until the number is that; false if it takes too long. */
bool xs_wait(const char *folder, const char *name, u32 value);
void xs_format(char *buf, u32 size, const char *fmt, ...) __attribute__((format(printf, 3, 4)));

#endif
