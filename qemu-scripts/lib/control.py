"""The control channel of a guest: run a command line in it, get exit code and output.

The guest's end is ttyS1, served by guest-init; this end is a unix stream socket that QEMU listens
on (`guest --control SOCKET`). One client at a time; it may leave, and another may connect later.
Lines end with a newline; bytes pass unchanged in both directions.

    guest:   ready NAME                      each time it has booted (lost if nobody was connected)
    client:  ? TOKEN LIMIT COMMAND           TOKEN: letters and digits, fresh each time, best random
                                             LIMIT: seconds (whole); then the command is killed
                                             COMMAND: the rest of the line, for `sh -c`
    guest:   = TOKEN STATUS LENGTH           STATUS: the exit code; 137 also when LIMIT was exceeded
             LENGTH bytes                    stdout and stderr of the command

Commands run one after the other. Whatever is no such line is ignored at both ends. A client that is
there when the guest boots waits for `ready` and sends nothing before: what comes while Linux sets up
the serial port can leave the port without interrupts, and the guest then hears nothing any more. One
that came later sends an empty line and `? TOKEN 5 true` each second or so, with a new TOKEN, until
one is answered.
"""

import secrets
import socket
import time

import host

# A serial port moves the output: some seconds of grace beyond the command's own limit.
GRACE = 10.0
PING_INTERVAL = 0.5


class Control:
    """A connection to a guest's control socket."""

    def __init__(self, path, alive=lambda: True):
        """`alive` says whether the guest still exists: waiting for a dead one is pointless."""
        self._path, self._alive = str(path), alive
        self._socket = None
        self._received = b""

    def connect(self, deadline):
        """Connects, waiting for the socket to appear, until the monotonic time `deadline`."""
        while self._socket is None:
            connection = socket.socket(socket.AF_UNIX)
            try:
                connection.connect(self._path)
                self._socket = connection
            except (FileNotFoundError, ConnectionRefusedError) as refused:
                connection.close()
                if not self._alive():
                    raise host.Problem("QEMU ended before it made the control socket") from refused
                if time.monotonic() > deadline:
                    raise host.Problem(f"no control socket at {self._path}") from refused
                time.sleep(0.02)

    def close(self):
        """Lets the socket go; the guest is not concerned."""
        if self._socket:
            self._socket.close()
            self._socket = None

    def wait_ready(self, timeout):
        """Waits until the guest has booted, for at most `timeout` seconds."""
        deadline = time.monotonic() + timeout
        self.connect(deadline)
        try:
            while not self._line(deadline).startswith("ready "):
                pass
        except TimeoutError as late:
            raise host.Problem(f"the guest wasn't ready within {timeout:.0f} s") from late

    def wait_awake(self, timeout):
        """Waits until a guest that has booted long ago serves commands, for `timeout` seconds."""
        deadline = time.monotonic() + timeout
        self.connect(deadline)
        tokens = []
        while time.monotonic() < deadline:
            # A busy guest may answer to an earlier one.
            tokens.append(self._ask("true", 5))
            try:
                self._answer(tokens, time.monotonic() + PING_INTERVAL)
                return
            except TimeoutError:
                continue
        raise host.Problem(f"no answer on the control channel within {timeout:.0f} s")

    def run(self, command, timeout=30):
        """Runs a command line in the guest; returns its exit code and its output (both streams).

        The guest kills the command after `timeout` seconds (exit code 137).
        """
        if "\n" in command:
            raise ValueError("the control channel takes one line")
        limit = max(1, int(timeout))
        token = self._ask(command, limit)
        try:
            return self._answer([token], time.monotonic() + limit + GRACE)
        except TimeoutError as late:
            raise host.Problem(f"no answer to `{command}` within {limit} s") from late

    def _ask(self, command, limit):
        token = secrets.token_hex(8)
        # The empty line in front ends whatever half a line the guest may have seen before.
        try:
            self._socket.sendall(f"\n? {token} {limit} {command}\n".encode())
        except OSError as gone:
            raise host.Problem("the guest's QEMU ended") from gone
        return token

    def _answer(self, tokens, deadline):
        while True:
            words = self._line(deadline).split()
            if len(words) != 4 or words[0] != "=" or not words[3].isdecimal():
                continue
            output = self._bytes(int(words[3]), deadline)
            if words[1] in tokens:
                return int(words[2]), output.decode(errors="replace")

    def _line(self, deadline):
        while b"\n" not in self._received:
            self._receive(deadline)
        line, _, self._received = self._received.partition(b"\n")
        return line.decode(errors="replace")

    def _bytes(self, length, deadline):
        while len(self._received) < length:
            self._receive(deadline)
        data, self._received = self._received[:length], self._received[length:]
        return data

    def _receive(self, deadline):
        self._socket.settimeout(max(0.001, deadline - time.monotonic()))
        try:
            data = self._socket.recv(65536)
        except ConnectionError:
            data = b""
        if not data:
            raise host.Problem("the guest's QEMU ended")
        self._received += data
