"""A running guest as an object.

It owns one QEMU process and its files. It makes no network: a socket or a TAP device is given.
"""

import pathlib

import accel
import host
import image
import qemu
from control import Control

# A guest under TCG boots in 3 s when it has a core to itself; tests share two cores among many.
BOOT_SECONDS = 120
# sun_path of unix(7), less its final zero byte.
SOCKET_PATH_MAX = 107


class Guest:
    """A guest in the background. `boot` waits for nothing; `wait_ready` comes after it."""

    def __init__(self, settings, directory, stem=None):
        self.name = settings.name
        self.settings = settings
        stem = stem or settings.name
        self._socket = pathlib.Path(directory, f"{stem}.control")
        if len(str(self._socket)) > SOCKET_PATH_MAX:
            raise host.Problem(f"{self._socket}: too long a path for a socket (at most "
                               f"{SOCKET_PATH_MAX} bytes)")
        self.console_log = pathlib.Path(directory, f"{stem}.console.log")
        self.qemu_log = pathlib.Path(directory, f"{stem}.qemu.log")
        self._process = None
        self._control = Control(self._socket, alive=self.is_alive)

    @classmethod
    def boot(cls, settings, directory, prefix=(), made=None, stem=None):
        """Starts a guest whose logs and control socket go to `directory`, named by `stem` if not as
        the guest; `prefix` is a command that wraps QEMU's (`ip netns exec NAME`), `made` another
        Image than the usual one. Several guests boot in parallel when each is awaited afterwards."""
        guest = cls(settings, directory, stem)
        accelerator = accel.choose()
        serials = (f"file:{guest.console_log}", f"unix:{guest._socket},server=on,wait=off")
        argv = qemu.command_line(settings, made or image.make(), accelerator, serials)
        guest._process = host.spawn([*prefix, *argv], guest.qemu_log)
        return guest

    @property
    def pid(self):
        """The process id of the guest's QEMU."""
        return self._process.pid

    def is_alive(self):
        """Whether the guest's QEMU is still there."""
        return self._process.poll() is None

    def wait_ready(self, timeout=BOOT_SECONDS):
        """Waits until the guest is up and takes commands."""
        try:
            self._control.wait_ready(timeout)
        except host.Problem as problem:
            raise self._explained(problem) from problem

    def run(self, command, timeout=30):
        """Runs a command line in the guest: (exit code, output). See control.py."""
        try:
            return self._control.run(command, timeout)
        except host.Problem as problem:
            raise self._explained(problem) from problem

    def check(self, command, timeout=30):
        """Runs a command that must succeed and returns its output."""
        status, output = self.run(command, timeout)
        if status != 0:
            raise host.Problem(f"`{command}` in guest {self.name} failed with exit code {status}: "
                               f"{output.strip() or 'it said nothing'}")
        return output

    def stop(self):
        """Ends the guest in order, as far as QEMU is concerned: it closes its socket or TAP."""
        self._leave(host.end)

    def kill(self):
        """Ends the guest as a crash would: SIGKILL to QEMU."""
        self._leave(lambda process: (process.kill(), process.wait()))

    def _leave(self, end):
        self._control.close()
        end(self._process)
        self._socket.unlink(missing_ok=True)

    def _explained(self, problem):
        """A problem with the guest, with QEMU's last words if it had some."""
        said = self.qemu_log.read_text(errors="replace").strip().splitlines()
        words = f"; QEMU said: {said[-1]}" if said else ""
        return host.Problem(f"guest {self.name}: {problem}{words} (logs: {self.console_log}, "
                            f"{self.qemu_log})", problem.code)
