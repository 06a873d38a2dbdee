"""`hvmlite check`: what a kernel declares, and every reason why it could not boot as PVH."""

from __future__ import annotations

import argparse
import json

from hvmlite.toolstack.kernel import check_kernel

EXIT_NOT_BOOTABLE = 2


def execute(options: argparse.Namespace) -> int:
    """Prints the report; 0 if the kernel can boot, 2 if not."""
    report = check_kernel(options.kernel)
    print(json.dumps(report.to_json(), indent=2) if options.json else report.to_text())
    return 0 if report.bootable else EXIT_NOT_BOOTABLE
