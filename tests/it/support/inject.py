"""Makes a thread of a running process ask for a system call, as an intruder in it would.

    inject.py THREAD-ID NUMBER [ARGUMENT...]

The thread must sleep in a system call (x86-64): it is stopped, sent back to the `syscall` instruction
with other registers, and let go. What comes of it shows in the process.
"""

import ctypes
import os
import sys

SEIZE, INTERRUPT, GETREGS, SETREGS, PEEKTEXT, DETACH = 0x4206, 0x4207, 12, 13, 1, 17
WALL = 0x40000000
NAMES = ("r15 r14 r13 r12 rbp rbx r11 r10 r9 r8 rax rcx rdx rsi rdi orig_rax rip cs eflags rsp ss "
         "fs_base gs_base ds es fs gs").split()

libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.restype = ctypes.c_long


class Registers(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in NAMES]


def ptrace(request, thread, address=0, data=0):
    ctypes.set_errno(0)
    result = libc.ptrace(request, thread, ctypes.c_void_p(address), data)
    if result == -1 and ctypes.get_errno():
        sys.exit(f"ptrace {request:#x}: {os.strerror(ctypes.get_errno())}")
    return result


def main(thread, number, *arguments):
    ptrace(SEIZE, thread)
    ptrace(INTERRUPT, thread)
    os.waitpid(thread, WALL)
    registers = Registers()
    ptrace(GETREGS, thread, 0, ctypes.byref(registers))
    if ptrace(PEEKTEXT, thread, registers.rip - 2) & 0xffff != 0x050f:
        sys.exit(f"thread {thread} is in no system call")
    registers.rip -= 2
    registers.rax = number
    registers.orig_rax = 2**64 - 1  # or the kernel would restart the call that was interrupted
    for name, value in zip(("rdi", "rsi", "rdx", "r10", "r8", "r9"), arguments):
        setattr(registers, name, value)
    ptrace(SETREGS, thread, 0, ctypes.byref(registers))
    ptrace(DETACH, thread)


main(*map(int, sys.argv[1:]))
