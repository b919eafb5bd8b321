"""Holds one thread of a running process until standard input ends; the others go on.

    hold.py THREAD-ID
"""

import ctypes
import os
import sys

SEIZE, INTERRUPT, DETACH = 0x4206, 0x4207, 17
WALL = 0x40000000

libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.restype = ctypes.c_long


def ptrace(request, thread):
    if libc.ptrace(request, thread, None, None) == -1:
        sys.exit(f"ptrace {request:#x}: {os.strerror(ctypes.get_errno())}")


thread = int(sys.argv[1])
ptrace(SEIZE, thread)
ptrace(INTERRUPT, thread)
os.waitpid(thread, WALL)
print("held", flush=True)
sys.stdin.read()
ptrace(DETACH, thread)
