#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "project.h"

enum { COUNT = 20000, SIZE = 4 * COUNT };

/* Mixes the numbers from 250 down to 1 into its argument. */
static const uint8_t program[] = {
	0, 250, 2, 1,
	0, 31, 5, 1, 1, 6, 0, 3, 3,
	1, 1, 0, 1, 4, 2, 1,
	1, 1, 9, 26, 10, 4,
	0, 7, 7, 11,
};

static uint32_t values[COUNT], again[COUNT], scratch[COUNT];
static uint8_t packed[2 * SIZE], unpacked[2 * SIZE];

int main(void)
{
	uint32_t state = 1;

	for (int i = 0; i < COUNT; i++) {
		state ^= state << 13;
		state ^= state >> 17;
		state ^= state << 5;
		values[i] = again[i] = state % 5 ? state % 97 : state;
	}
	printf("unsorted %016" PRIx64 "\n", digest(values, SIZE));
	size_t size = pack((uint8_t *)values, SIZE, packed);
	printf("packed %zu %016" PRIx64 "\n", size, digest(packed, size));
	printf("unpacked %d\n",
	       unpack(packed, size, unpacked) == SIZE && !memcmp(unpacked, values, SIZE));
	sort_heap(values, COUNT);
	sort_merge(again, scratch, COUNT);
	printf("sorted %016" PRIx64 " %d\n", digest(values, SIZE), !memcmp(values, again, SIZE));
	for (int i = 0; i < 3; i++)
		printf("machine %" PRId64 "\n", machine_run(program, sizeof(program), i));
	return 0;
}
