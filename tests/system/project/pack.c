#include <string.h>

#include "project.h"

enum { WINDOW = 4095, LEAST = 3, MOST = 18 };

size_t pack(const uint8_t *in, size_t size, uint8_t *out)
{
	static int32_t last[1 << 14];
	size_t written = 0, at = 0;

	memset(last, 0xff, sizeof(last));
	while (at < size) {
		size_t flags = written++;

		out[flags] = 0;
		for (int bit = 0; bit < 8 && at < size; bit++) {
			size_t length = 0, distance = 0;

			if (at + LEAST <= size) {
				uint32_t hash = in[at] | in[at + 1] << 8 | in[at + 2] << 16;
				int32_t *slot = &last[hash * 2654435761u >> 18];

				if (*slot >= 0 && at - *slot <= WINDOW) {
					distance = at - *slot;
					while (length < MOST && at + length < size &&
					       in[at + length] == in[at + length - distance])
						length++;
				}
				*slot = at;
			}
			if (length >= LEAST) {
				out[flags] |= 1 << bit;
				out[written++] = distance;
				out[written++] = distance >> 8 << 4 | (length - LEAST);
				at += length;
			} else {
				out[written++] = in[at++];
			}
		}
	}
	return written;
}

size_t unpack(const uint8_t *in, size_t size, uint8_t *out)
{
	size_t written = 0, at = 0;

	while (at < size) {
		uint8_t flags = in[at++];

		for (int bit = 0; bit < 8 && at < size; bit++) {
			if (flags >> bit & 1) {
				size_t distance = in[at] | in[at + 1] >> 4 << 8;
				size_t length = (in[at + 1] & 15) + LEAST;

				at += 2;
				for (; length > 0; length--, written++)
					out[written] = out[written - distance];
			} else {
				out[written++] = in[at++];
			}
		}
	}
	return written;
}
