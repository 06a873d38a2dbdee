/*
 * Formatted output.
 */
#include "guest.h"

struct sink {
    char *buf;
    size_t size, len;
};

static void put(struct sink *s, char c)
{
    if (s->len + 1 < s->size)
        s->buf[s->len] = c;
    s->len++;
}

static void put_padded(struct sink *s, const char *text, size_t len, size_t width, char pad, bool left)
{
    size_t fill = width > len ? width - len : 0;

    if (!left)
        while (fill) {
            put(s, pad);
            fill--;
        }
    for (size_t i = 0; i < len; i++)
        put(s, text[i]);
    while (fill) {
        put(s, ' ');
        fill--;
    }
}

/* Writes digits backwards from the end of a buffer; returns where they begin. */
static char *digits(char *end, u64 value, u32 base)
{
    do {
        u32 digit;
        value = div_u64(value, base, &digit);
        *--end = "0123456789abcdef"[digit];
    } while (value);
    return end;
}

int vsnprintk(char *buf, size_t size, const char *fmt, va_list args)
{
    struct sink s = {buf, size, 0};

    for (; *fmt; fmt++) {
        char number[24], *end = number + sizeof(number), *text;
        bool left = false, negative = false;
        char pad = ' ';
        size_t width = 0;
        int longs = 0;
        u64 value = 0;

        if (*fmt != '%') {
            put(&s, *fmt);
            continue;
        }
        fmt++;
        if (*fmt == '-') {
            left = true;
            fmt++;
        }
        if (*fmt == '0' && !left) {
            pad = '0';
            fmt++;
        }
        for (; *fmt >= '0' && *fmt <= '9'; fmt++)
            width = width * 10 + (size_t)(*fmt - '0');
        for (; *fmt == 'l' || *fmt == 'z'; fmt++)
            longs++;

        switch (*fmt) {
        case 'd':
            value = longs > 1 ? va_arg(args, u64) : longs ? (u64)va_arg(args, long) : (u64)va_arg(args, int);
            negative = (s64)value < 0;
            if (negative)
                value = -value;
            text = digits(end, value, 10);
            if (negative)
                *--text = '-';
            put_padded(&s, text, (size_t)(end - text), width, negative ? ' ' : pad, left);
            break;
        case 'u':
        case 'x':
            value = longs > 1 ? va_arg(args, u64) : longs ? va_arg(args, ulong) : va_arg(args, unsigned int);
            text = digits(end, value, *fmt == 'u' ? 10 : 16);
            put_padded(&s, text, (size_t)(end - text), width, pad, left);
            break;
        case 'p':
            text = digits(end, (ulong)va_arg(args, void *), 16);
            *--text = 'x';
            *--text = '0';
            put_padded(&s, text, (size_t)(end - text), width, ' ', left);
            break;
        case 'c':
            number[0] = (char)va_arg(args, int);
            put_padded(&s, number, 1, width, ' ', left);
            break;
        case 's':
            text = va_arg(args, char *);
            put_padded(&s, text, strlen(text), width, ' ', left);
            break;
        case '%':
            put(&s, '%');
            break;
        default:
            put(&s, '?');
            break;
        }
        if (!*fmt)
            break;
    }
    if (size)
        buf[s.len < size ? s.len : size - 1] = '\0';
    return (int)s.len;
}

static void vprintk(const char *fmt, va_list args)
{
    char line[512];
    size_t len = (size_t)vsnprintk(line, sizeof(line), fmt, args);

    console_write(line, len < sizeof(line) ? len : sizeof(line) - 1);
}

void printk(const char *fmt, ...)
{
    va_list args;

    va_start(args, fmt);
    vprintk(fmt, args);
    va_end(args);
}
