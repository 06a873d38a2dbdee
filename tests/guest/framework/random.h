/*
 * Random numbers from a seed (random.c): the same in each run.
 */
#ifndef GUEST_RANDOM_H
#define GUEST_RANDOM_H

#include "x86.h"

void random_seed(u64 seed);
u64 random_u64(void);
/* Less than n. */
u32 random_below(u32 n);

#endif
