/*
 * The few C library functions that the compiler and the tests expect, and 64-bit arithmetic that
 * 32-bit compilers otherwise take from libgcc.
 */
#include "guest.h"

void *memset(void *to, int byte, size_t n)
{
    void *p = to;
    asm volatile("rep stosb" : "+D"(p), "+c"(n) : "a"(byte) : "memory");
    return to;
}

void *memcpy(void *to, const void *from, size_t n)
{
    void *p = to;
    asm volatile("rep movsb" : "+D"(p), "+S"(from), "+c"(n)::"memory");
    return to;
}

void *memmove(void *to, const void *from, size_t n)
{
    u8 *p = to;
    const u8 *q = from;

    if (p <= q)
        return memcpy(to, from, n);
    while (n--)
        ((volatile u8 *)p)[n] = q[n];
    return to;
}

int memcmp(const void *a, const void *b, size_t n)
{
    const volatile u8 *p = a, *q = b;

    for (size_t i = 0; i < n; i++)
        if (p[i] != q[i])
            return p[i] < q[i] ? -1 : 1;
    return 0;
}

size_t strlen(const char *s)
{
    const volatile char *p = s;

    while (*p)
        p++;
    return (size_t)(p - s);
}

int strncmp(const char *a, const char *b, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        if (a[i] != b[i])
            return (u8)a[i] < (u8)b[i] ? -1 : 1;
        if (!a[i])
            break;
    }
    return 0;
}

u64 div_u64(u64 dividend, u32 divisor, u32 *remainder)
{
    u32 high = (u32)(dividend >> 32), low = (u32)dividend, rest;
    u32 quotient_high = high / divisor;

    high %= divisor;
    asm("divl %4" : "=a"(low), "=d"(rest) : "0"(low), "1"(high), "r"(divisor));
    if (remainder)
        *remainder = rest;
    return ((u64)quotient_high << 32) | low;
}

u64 mul_shift_32(u64 value, u32 factor)
{
    return (u64)(u32)(value >> 32) * factor + (((u64)(u32)value * factor) >> 32);
}

#ifndef __x86_64__
u64 __udivmoddi4(u64 n, u64 d, u64 *rest);
u64 __udivdi3(u64 n, u64 d);
u64 __umoddi3(u64 n, u64 d);

u64 __udivmoddi4(u64 n, u64 d, u64 *rest)
{
    u64 quotient = 0, r = 0;

    for (int bit = 63; bit >= 0; bit--) {
        r = (r << 1) | ((n >> bit) & 1);
        if (r >= d) {
            r -= d;
            quotient |= 1ull << bit;
        }
    }
    if (rest)
        *rest = r;
    return quotient;
}

u64 __udivdi3(u64 n, u64 d)
{
    return __udivmoddi4(n, d, NULL);
}

u64 __umoddi3(u64 n, u64 d)
{
    u64 rest;

    __udivmoddi4(n, d, &rest);
    return rest;
}
#endif
