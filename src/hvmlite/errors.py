"""Every error that hvmlite raises on purpose, by whose mistake it was.

A guest's mistake is an errno or a crash of that guest, never one of these; anything else that
escapes is our own bug and shows as a traceback.
"""

from __future__ import annotations


class HvmliteError(Exception):
    """Base of all errors that hvmlite raises on purpose; ``str()`` is one line for the user."""


class UserError(HvmliteError):
    """What the user gave (an image, an option, a config) cannot be used; the command exits 2."""


class EngineError(HvmliteError):
    """The engine cannot run here or stopped working (QEMU missing, broken, gone); exit status 1."""
