/* A small program of several parts: everything it prints follows from what is written here. */
#ifndef PROJECT_H
#define PROJECT_H

#include <stddef.h>
#include <stdint.h>

/* digest.c: FNV-1a over bytes, with a last mixing of the bits. */
uint64_t digest(const void *data, size_t size);

/* machine.c: runs a program for a stack machine; what is left on top is its result. */
int64_t machine_run(const uint8_t *program, size_t size, int64_t argument);

/* pack.c: shortens repetitions, and undoes it; both return how many bytes they have written. */
size_t pack(const uint8_t *in, size_t size, uint8_t *out);
size_t unpack(const uint8_t *in, size_t size, uint8_t *out);

/* sort.c: a heap sort and a merge sort that have to agree. */
void sort_heap(uint32_t *values, size_t count);
void sort_merge(uint32_t *values, uint32_t *scratch, size_t count);

#endif
