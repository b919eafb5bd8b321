"""A running guest as an object.

It owns one QEMU process and its files. It makes no network: a socket or a TAP device is given.
"""

import pathlib
import time

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
    """A guest in the background. `boot` waits for its QEMU only; `wait_ready` comes after it."""

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
        # Before it can have booted: what it says then is lost to those who come later.
        guest._explaining(lambda: guest._control.connect(time.monotonic() + BOOT_SECONDS))
        return guest

    @property
    def pid(self):
        """The process id of the guest's QEMU."""
        return self._process.pid

    def is_alive(self):
        """Whether the guest's QEMU is still there."""
        return self._process.poll() is None

    def wait_ready(self, timeout=BOOT_SECONDS):
        """Waits until the guest has booted, once more if it was seen before."""
        self._explaining(lambda: self._control.wait_ready(timeout))

    def wait_awake(self, timeout):
        """Waits until a guest that came from another QEMU, and doesn't boot, takes commands."""
        self._explaining(lambda: self._control.wait_awake(timeout))

    def run(self, command, timeout=30):
        """Runs a command line in the guest: (exit code, output). See control.py."""
        return self._explaining(lambda: self._control.run(command, timeout))

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

    def _explaining(self, act):
        """Does it; a problem is told with QEMU's last words, if it had some."""
        try:
            return act()
        except host.Problem as problem:
            said = self.qemu_log.read_text(errors="replace").strip().splitlines()
            words = f"; QEMU said: {said[-1]}" if said else ""
            raise host.Problem(f"guest {self.name}: {problem}{words} (logs: {self.console_log}, "
                               f"{self.qemu_log})", problem.code) from problem
