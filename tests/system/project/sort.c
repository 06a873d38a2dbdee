#include <string.h>

#include "project.h"

static void sift(uint32_t *values, size_t at, size_t count)
{
	uint32_t value = values[at];

	for (size_t child; (child = 2 * at + 1) < count; at = child) {
		if (child + 1 < count && values[child] < values[child + 1])
			child++;
		if (values[child] <= value)
			break;
		values[at] = values[child];
	}
	values[at] = value;
}

void sort_heap(uint32_t *values, size_t count)
{
	for (size_t at = count / 2; at > 0; at--)
		sift(values, at - 1, count);
	for (size_t left = count; left > 1; left--) {
		uint32_t most = values[0];

		values[0] = values[left - 1];
		values[left - 1] = most;
		sift(values, 0, left - 1);
	}
}

void sort_merge(uint32_t *values, uint32_t *scratch, size_t count)
{
	size_t half = count / 2, low = 0, high = half;

	if (count < 2)
		return;
	sort_merge(values, scratch, half);
	sort_merge(values + half, scratch, count - half);
	for (size_t at = 0; at < count; at++) {
		int from_low = high == count || (low < half && values[low] <= values[high]);

		scratch[at] = from_low ? values[low++] : values[high++];
	}
	memcpy(values, scratch, count * sizeof(*values));
}
