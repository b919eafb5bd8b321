"""The networks whose lifecycle is measured: two guests on ringswitch, in both roles on the socket,
and on OVS-DPDK. The guests are those of `qemu-scripts/demo`, and hold the probe besides.
"""

import contextlib
import pathlib
import re
import time

import cpio
import host
import image
import qmp
import testbed
from guest import Guest

READY_PATIENCE = 60
LOOK = 0.002
# For memory that is plugged in, in every guest.
SLOTS = 8


def image_with(probe, directory):
    """The guests' usual image with the program `probe` in it."""
    made = image.make()
    archive = cpio.Archive()
    archive.directory("bin")
    archive.file("bin/probe", pathlib.Path(probe).read_bytes(), 0o755)
    # The kernel unpacks one archive after the other.
    initramfs = directory / "initramfs.cpio"
    initramfs.write_bytes(made.initramfs.read_bytes() + archive.finish())
    return image.Image(made.kernel, initramfs, made.version)


class Bed:
    """What a testbed has besides for its events. Comes before a `testbed.Testbed` as a base."""

    log_ready = None  # what the switch logs when it serves
    peer = False  # somebody else's switch

    def prepare(self, made):
        """`made` is the guests' image."""
        self._made = made
        self._commands = {}
        return self

    def _host_server(self):
        """Nothing is measured with the host."""

    def _boot(self, number, **more):
        settings = self._settings(number)
        settings.socket = str(self._sockets[number])
        settings.device = testbed.LONG_RINGS
        settings.slots, settings.qmp = SLOTS, str(self.directory / f"vm{number}.qmp")
        for name, value in more.items():
            setattr(settings, name, value)
        return Guest.boot(settings, self.directory, made=self._made)

    def qmp(self, number):
        """QEMU's commands for guest `number`, 1 or 2."""
        if number not in self._commands:
            commands = qmp.Qmp(self.directory / f"vm{number}.qmp")
            self._stack.callback(commands.close)
            self._commands[number] = commands
        return self._commands[number]

    def _spawn(self):
        """Starts the switch process."""
        log = self.directory / "switch.log"
        self._switch = host.spawn([*self.namespace.prefix, *self._command()], log,
                                  env=self._environment())
        return log

    def _environment(self):
        return None

    def _command(self):
        raise NotImplementedError

    def _end_switch(self):
        host.end(self._switch)

    def _wait_ready(self, since=0):
        """Waits until the switch says behind byte `since` of its log that it is ready."""
        log, deadline = self.directory / "switch.log", time.monotonic() + READY_PATIENCE
        while True:
            with open(log, "rb") as file:
                file.seek(since)
                if re.search(self.log_ready, file.read()):
                    return
            if self._switch.poll() is not None or time.monotonic() > deadline:
                raise host.Problem(f"{self.label} does not start (log: {log})")
            time.sleep(LOOK)

    def restart_switch(self, number):
        """Ends the switch by signal `number` and starts it again. Returns for how many seconds
        there was none that was ready, from the signal on."""
        size = (self.directory / "switch.log").stat().st_size
        start = time.monotonic()
        self._switch.send_signal(number)
        self._switch.wait()
        self._spawn()
        self._wait_ready(size)
        return time.monotonic() - start


class Ringswitch(Bed, testbed.Testbed):
    """One ringswitch process that listens; QEMU connects, and tries again each second."""

    label, key, role, vhost_mode = "ringswitch, listening", "listening", "server", "client"
    log_ready = rb"\bready: "
    more_settings = ""

    def __init__(self, directory, binary):
        super().__init__(directory)
        self._binary = binary
        self._sockets = {number: self.directory / f"vm{number}.sock" for number in (1, 2)}

    def _command(self, *more):
        return [self._binary, "run", *more, "--config", self.directory / "ringswitch.toml"]

    def upgrade(self):
        """Has another process take the switch's place. Returns for how many seconds frames stood
        still, as the old process says."""
        log = self.directory / "switch.log"
        size = log.stat().st_size
        new = host.spawn([*self.namespace.prefix, *self._command("--take-over")], log)
        if self._switch.wait(READY_PATIENCE) != 0:
            raise host.Problem(f"{self.label}: nobody took over (log: {log})")
        self._switch = new
        self._wait_ready(size)
        said = log.read_bytes()[size:]
        return int(re.search(rb"stood still for (\d+) microseconds", said)[1]) / 1e6

    def _network(self):
        ports = (f'[[port]]\nname = "vm{number}"\ntype = "vhost-user"\nsocket = "{path}"\n'
                 f'role = "{self.role}"\n' for number, path in self._sockets.items())
        upgrade = f'[upgrade]\nsocket = "{self.directory}/upgrade.sock"\n'
        settings = "\n".join([upgrade, self.more_settings, *ports])
        (self.directory / "ringswitch.toml").write_text(settings, encoding="ascii")
        self._spawn()
        self._stack.callback(self._end_switch)
        self._wait_ready()

    def _guest(self, number):
        return self._boot(number, vhost_mode=self.vhost_mode)


class RingswitchConnecting(Ringswitch):
    """One ringswitch process that connects to QEMU's sockets."""

    label, key, role, vhost_mode = "ringswitch, connecting", "connecting", "client", "server"
    # QEMU is root's here, and so are its sockets.
    more_settings = '[sandbox]\nuser = "root"\n'


class OvsDpdk(Bed, testbed.OvsDpdk):
    """OVS-DPDK, which connects to QEMU's sockets."""

    label, key, peer = "OVS-DPDK", "ovs", True
    # It has read its settings, and starts to connect.
    log_ready = rb"vHost User device 'p1' created in 'client' mode"

    def _network(self):
        self._stack.callback(self._ovs.end)
        self._ovs.start_database()
        for path in self._sockets.values():
            self._ovs.add_port(path)
        self._spawn()
        self._stack.callback(self._end_switch)
        self._wait_ready()

    def _environment(self):
        return self._ovs.environment

    def _command(self):
        return self._ovs.command()

    def _guest(self, number):
        return self._boot(number, vhost_mode="server")


@contextlib.contextmanager
def running(beds):
    """All beds up, each stopped unless it has its turn."""
    with contextlib.ExitStack() as stack:
        for bed in beds:
            host.progress(f"{bed.label}: booting two guests")
            stack.enter_context(bed)
        yield
