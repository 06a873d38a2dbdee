"""Kernel images: from a file to the segments, the entry and the notes of a PVH guest.

Reads ELF files (plain or compressed) and Linux bzImages. It decides nothing about the guest's
memory: the domain builder asks `KernelImage.check_fits` and then copies the segments.
"""

from hvmlite.toolstack.kernel.check import KernelReport, check_kernel
from hvmlite.toolstack.kernel.image import KernelImage, Segment, load_kernel
from hvmlite.toolstack.kernel.notes import XenNotes
from hvmlite.toolstack.kernel.source import KernelError

__all__ = [
    "KernelError",
    "KernelImage",
    "KernelReport",
    "Segment",
    "XenNotes",
    "check_kernel",
    "load_kernel",
]
