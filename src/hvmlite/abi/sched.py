"""Yield, block, poll, shutdown and the domain watchdog. Source: sched.h."""

from hvmlite.abi.layout import Struct, handle, s32, u16, u32, u64

SCHEDOP_yield = 0
SCHEDOP_block = 1
SCHEDOP_shutdown = 2
SCHEDOP_poll = 3
SCHEDOP_remote_shutdown = 4
SCHEDOP_shutdown_code = 5
SCHEDOP_watchdog = 6
SCHEDOP_pin_override = 7

SHUTDOWN_poweroff = 0
SHUTDOWN_reboot = 1
SHUTDOWN_suspend = 2
SHUTDOWN_crash = 3
SHUTDOWN_watchdog = 4
SHUTDOWN_soft_reset = 5
SHUTDOWN_MAX = 5


class sched_shutdown(Struct):
    """SCHEDOP_shutdown and SCHEDOP_shutdown_code: in reason (SHUTDOWN_*)."""

    reason: u32 = 0


class sched_poll(Struct):
    """SCHEDOP_poll: in ports (array of nr_ports u32), timeout (system time in ns; 0: none)."""

    ports: handle = 0
    nr_ports: u32 = 0
    timeout: u64 = 0


class sched_remote_shutdown(Struct):
    """SCHEDOP_remote_shutdown: in domain_id, reason (SHUTDOWN_*)."""

    domain_id: u16 = 0
    reason: u32 = 0


class sched_watchdog(Struct):
    """SCHEDOP_watchdog: in id (0: a new one), timeout (seconds; 0 on an old one: delete)."""

    id: u32 = 0
    timeout: u32 = 0


class sched_pin_override(Struct):
    """SCHEDOP_pin_override: in pcpu (negative: undo)."""

    pcpu: s32 = 0
