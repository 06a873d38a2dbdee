"""Faults that a platform device answers an access with.

A device raises them; whoever runs the exit injects them into the guest. They are the guest's
doing, so they are no HvmliteError and never reach the user.
"""


class GeneralProtection(Exception):
    """#GP(0): the MSR does not exist, is read-only, or does not take this value."""
