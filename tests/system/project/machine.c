#include "project.h"

enum { PUSH, LOAD, STORE, ADD, SUB, MUL, XOR, SHIFT, LESS, JUMP_ZERO, JUMP, HALT };

int64_t machine_run(const uint8_t *program, size_t size, int64_t argument)
{
	int64_t stack[64] = { argument }, cells[16] = { 0 };
	size_t top = 1, at = 0;

	while (at < size && top > 0 && top < 63) {
		uint8_t operation = program[at++];
		uint64_t value = stack[top - 1], below = top > 1 ? stack[top - 2] : 0;
		int operand = operation <= STORE || operation == JUMP_ZERO || operation == JUMP;
		uint8_t next = operand && at < size ? program[at++] : 0;

		switch (operation) {
		case PUSH: stack[top++] = next; break;
		case LOAD: stack[top++] = cells[next % 16]; break;
		case STORE: cells[next % 16] = value; top--; break;
		case ADD: stack[--top - 1] = below + value; break;
		case SUB: stack[--top - 1] = below - value; break;
		case MUL: stack[--top - 1] = below * value; break;
		case XOR: stack[--top - 1] = below ^ value; break;
		case SHIFT: stack[--top - 1] = below >> (value % 64); break;
		case LESS: stack[--top - 1] = (int64_t)below < (int64_t)value; break;
		case JUMP_ZERO: top--; if (!value) at = next; break;
		case JUMP: at = next; break;
		default: return value;
		}
	}
	return -1;
}
