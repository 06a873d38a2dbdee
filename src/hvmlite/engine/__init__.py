"""CPUs: run guest instructions, return typed exits, handle none."""
