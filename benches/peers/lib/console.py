"""A child process: its input line by line, its output in a file that is read as it grows."""

import os
import re
import signal
import subprocess
import time

import host

LOOK = 0.01


class Console:
    """A running child. It is ended by its own pid, also when it is stopped."""

    def __init__(self, argv, log, env=None):
        self.log = log
        log.touch()
        self.child = host.spawn(argv, log, stdin=subprocess.PIPE, env=env)
        self.pid = self.child.pid

    def text(self, start=0):
        """The output from byte `start` on."""
        with open(self.log, "rb") as log:
            log.seek(start)
            return log.read().decode(errors="replace")

    def size(self):
        """How many bytes of output there are."""
        return os.path.getsize(self.log)

    def check(self):
        """A child that has ended is a Problem with its last words."""
        if self.child.poll() is not None:
            last = "\n".join(self.text().splitlines()[-8:])
            raise host.Problem(f"{self.log.stem} ended with exit code {self.child.returncode} "
                               f"(log: {self.log}):\n{last}")

    def wait(self, pattern, patience=30.0, start=0):
        """Waits for a pattern in the output from byte `start` on; returns the output from there."""
        deadline = time.monotonic() + patience
        while True:
            said = self.text(start)
            if re.search(pattern, said):
                return said
            self.check()
            if time.monotonic() > deadline:
                raise host.Problem(f"{self.log.stem} said nothing like {pattern!r} within "
                                   f"{patience} s (log: {self.log})")
            time.sleep(LOOK)

    def ask(self, line, pattern, patience=30.0):
        """Types a line; waits for a pattern in what is said from then on, and returns that."""
        start = self.size()
        try:
            self.child.stdin.write(f"{line}\n".encode())
            self.child.stdin.flush()
        except BrokenPipeError:
            self.child.wait(5)
            self.check()
            raise
        return self.wait(pattern, patience, start)

    def signal(self, number):
        """Sends a signal, if the child is still there."""
        if self.child.poll() is None:
            self.child.send_signal(number)

    def end(self):
        """Ends the child."""
        self.signal(signal.SIGCONT)
        host.end(self.child)
        self.child.stdin.close()
