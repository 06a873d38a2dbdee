/*
 * Samples of a benchmark: the median of some TSC intervals, in nanoseconds.
 */
#include "guest.h"
#include "samples.h"

static void sort(u32 *values, unsigned int n)
{
    for (unsigned int gap = n / 2; gap; gap /= 2)
        for (unsigned int i = gap; i < n; i++)
            for (unsigned int k = i; k >= gap && values[k - gap] > values[k]; k -= gap) {
                u32 lower = values[k];

                values[k] = values[k - gap];
                values[k - gap] = lower;
            }
}

static u32 to_ns(u32 cycles)
{
    u32 khz = cpuid_count(xen_leaf + 3, 0).ecx;

    return khz ? (u32)div_u64(cycles * 1000000ull, khz, NULL) : 0;
}

struct summary summarize(u32 *cycles, unsigned int n)
{
    sort(cycles, n);
    return (struct summary){
        .least = to_ns(cycles[0]),
        .median = to_ns(cycles[n / 2]),
        .most_of_ten = to_ns(cycles[n / 10 * 9]),
    };
}
