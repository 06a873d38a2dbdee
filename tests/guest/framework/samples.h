/*
 * Samples of a benchmark: TSC intervals, and nanoseconds that sum them up.
 */
#ifndef GUEST_SAMPLES_H
#define GUEST_SAMPLES_H

#include "x86.h"

/* Nanoseconds: the least, the median, and what nine of ten do not exceed. */
struct summary {
    u32 least, median, most_of_ten;
};

/* Sorts them. */
struct summary summarize(u32 *cycles, unsigned int n);

#endif
