/*
 * A xorshift generator (Marsaglia, 2003). See random.h.
 */
#include "random.h"

static u64 state = 1;

void random_seed(u64 seed)
{
    /* Not 0, which would stay so, for any seed but the very last. */
    state = 0x9e3779b97f4a7c15ull * (seed + 1);
}

u64 random_u64(void)
{
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state;
}

u32 random_below(u32 n)
{
    return (u32)((u64)(u32)(random_u64() >> 16) * n >> 32);
}
