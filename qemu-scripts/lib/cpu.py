"""Processor time of the whole machine. Nothing here knows whose it is."""

import os
import time


def busy_seconds():
    """The time that all CPUs together have worked, interrupts included, from some moment on: only
    differences mean something.

    It is what was neither idle nor taken by a hypervisor (steal). The kernel measures idle time by
    the clock, while busy time is mostly what its ticks happened to meet: threads that wake up on
    timers were seen at two thirds of their time.
    """
    with open("/proc/stat", encoding="ascii") as stat:
        _user, _nice, _system, idle, iowait, _irq, _softirq, steal = map(
            int, stat.readline().split()[1:9])
    not_busy = (idle + iowait + steal) / os.sysconf("SC_CLK_TCK")
    return time.monotonic() * os.sysconf("SC_NPROCESSORS_ONLN") - not_busy
