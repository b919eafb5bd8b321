"""The machine that is measured on: its CPUs, time-stamp counter, and whether it is quiet. Nothing
here knows of switches.
"""

import contextlib
import ctypes
import mmap
import os
import pathlib
import time

import cpu
import host

# rdtsc; shl rdx, 32; or rax, rdx; ret
_READ_TSC = bytes.fromhex("0f31 48c1e220 4809d0 c3".replace(" ", ""))
QUIET_LOOK = 0.25
# Of all CPUs together, in a look at a quiet machine: four units of /proc/stat.
QUIET_BUSY = 0.045


def cpus():
    """The CPUs of the generator and of the switch: the first two that we may use."""
    allowed = sorted(os.sched_getaffinity(0))
    if len(allowed) < 2:
        raise host.Problem("two CPUs are needed, one for the guests and one for the switch",
                           host.EXIT_MISSING)
    return allowed[0], allowed[1]


def tsc_hz(seconds=0.3):
    """The rate of the time-stamp counter in Hz, measured against the clock."""
    with mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC) as page:
        page.write(_READ_TSC)
        start = ctypes.c_char.from_buffer(page)
        read = ctypes.CFUNCTYPE(ctypes.c_uint64)(ctypes.addressof(start))
        clock, count = time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW), read()
        time.sleep(seconds)
        count, clock = read() - count, time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW) - clock
        del read, start  # they keep the mapping in use
    return count * 1e9 / clock


def model():
    """The processor's name."""
    for line in pathlib.Path("/proc/cpuinfo").read_text(encoding="ascii").splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return "unknown processor"


def cpu_seconds(pid):
    """The processor time that all threads of a process have used."""
    total = 0
    for task in pathlib.Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # a thread may end
            total += int((task / "schedstat").read_text().split()[0])
    return total / 1e9


def wait_quiet(limit):
    """Waits, while everything of ours is stopped, until nobody else is busy; at most `limit`
    seconds. Tells whether it is so."""
    deadline = time.monotonic() + limit
    while True:
        before = cpu.busy_seconds()
        time.sleep(QUIET_LOOK)
        if cpu.busy_seconds() - before <= QUIET_BUSY:
            return True
        if time.monotonic() > deadline:
            return False
