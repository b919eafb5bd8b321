"""Processor time of the whole machine. Nothing here knows whose it is."""

import os


def busy_seconds():
    """The time that all CPUs together have worked since the machine's start, interrupts included.

    What a hypervisor took from them (steal) is not work. The kernel counts in ticks of 10 ms.
    """
    with open("/proc/stat", encoding="ascii") as stat:
        user, nice, system, _idle, _iowait, irq, softirq = map(int, stat.readline().split()[1:8])
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")
