#include "project.h"

uint64_t digest(const void *data, size_t size)
{
	const uint8_t *bytes = data;
	uint64_t value = 0xcbf29ce484222325;

	for (size_t i = 0; i < size; i++)
		value = (value ^ bytes[i]) * 0x100000001b3;
	value ^= value >> 29;
	value *= 0xbf58476d1ce4e5b9;
	return value ^ value >> 32;
}
