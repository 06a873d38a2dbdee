"""Makes the Debian disk image that the slow tests boot, and says where its parts are.

The tests make it themselves when they need it; this is for looking at it, and for `--refresh`.
"""

from __future__ import annotations

import argparse
import sys

from hvmlite.errors import HvmliteError
from hvmlite.testing.rootfs import CMDLINE, PASSWORD, debian_rootfs


def main() -> int:
    """Make the image if it is missing; exit 1 if that failed."""
    parser = argparse.ArgumentParser(description="make the tests' Debian disk image")
    parser.add_argument("--refresh", action="store_true", help="make it again")
    refresh: bool = parser.parse_args().refresh
    try:
        rootfs = debian_rootfs(refresh=refresh)
    except HvmliteError as error:
        print(f"rootfs: {error}", file=sys.stderr)
        return 1
    print(f"kernel:   {rootfs.kernel}\nramdisk:  {rootfs.ramdisk}\nimage:    {rootfs.image}")
    print(f"cmdline:  {CMDLINE}\npassword: {PASSWORD}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
