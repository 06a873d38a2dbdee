"""Hosts and domains for backends: those of the toolstack's tests."""

from ..toolstack.conftest import engine, host, kernel, make

__all__ = ["engine", "host", "kernel", "make"]
