"""The networks that the demo compares: one ringswitch process, TAP + Linux bridge, OVS-DPDK.

Each has two guests, vm1 and vm2, and the host on the same segment. The guests are equal but for
the backend of their NIC. Testbeds live side by side, each in a network namespace of its own; the
guests of one that isn't measured are idle.

A switch that polls takes a whole CPU as long as it is there, so it is stopped between its turns:
the others would have one CPU less. In its turns the polling counts, as it does in life.
"""

import contextlib
import os
import pathlib
import signal
import time

import host
import ovs
from guest import Guest
from netns import Namespace
from qemu import Settings

HOST_IP4, HOST_IP6 = "10.77.0.254", "fd77::254"
SWITCH_START_SECONDS = 20
UPLINK, BRIDGE = "rs0", "br0"
# As `ringswitch args` says. QEMU's own device takes 256 for transmission only, and with longer
# receive rings alone TAP + bridge became slower (x0.93).
LONG_RINGS = "rx_queue_size=1024,tx_queue_size=1024"


def _address(number):
    return f"10.77.0.{number}", f"fd77::{number}"


class Testbed(contextlib.AbstractContextManager):
    """Two running guests and the host's end of their network; the base of all kinds."""

    label = ""  # for people
    key = ""  # for machines, and in file names: letters, digits and _
    polls = False  # whether its switch is to be stopped between turns

    def __init__(self, directory):
        """`directory` takes the logs and sockets; its path must be short."""
        self.directory = pathlib.Path(directory, self.key)
        self.guests = []
        self.addresses = {"vm1": _address(1), "vm2": _address(2), "host": (HOST_IP4, HOST_IP6)}
        self._stack = contextlib.ExitStack()
        self._switch = None  # the process, where the kernel isn't the switch
        self.namespace = None

    def __enter__(self):
        self.directory.mkdir(exist_ok=True)
        with self._stack:
            self.namespace = self._stack.enter_context(Namespace(self.key))
            self._network()
            self._host_server()
            for number in (1, 2):
                guest = self._guest(number)
                self._stack.callback(guest.stop)
                self.guests.append(guest)
            for guest in self.guests:
                guest.wait_ready()
            # All is well: what is on the stack stays up until __exit__.
            self._stack = self._stack.pop_all()
        self._signal_polling(signal.SIGSTOP)
        return self

    def __exit__(self, *exception):
        # Stopped, it would answer neither the guests that leave nor a signal to end.
        self._signal_polling(signal.SIGCONT)
        return self._stack.__exit__(*exception)

    @contextlib.contextmanager
    def turn(self):
        """The `with` block in which the testbed is measured: outside it takes no processor time."""
        self._signal_polling(signal.SIGCONT)
        try:
            yield
        finally:
            self._signal_polling(signal.SIGSTOP)

    def _signal_polling(self, number):
        if self.polls:
            self._switch.send_signal(number)

    def _wait_up(self, log, is_up):
        """Waits until the switch process has made what guests and host are attached to."""
        deadline = time.monotonic() + SWITCH_START_SECONDS
        while not is_up():
            if self._switch.poll() is not None:
                raise host.Problem(f"{self.label} ended at once with exit code "
                                   f"{self._switch.returncode} (log: {log})")
            if time.monotonic() > deadline:
                raise host.Problem(f"{self.label} made no sockets or no link for the host within "
                                   f"{SWITCH_START_SECONDS} s (log: {log})")
            time.sleep(0.02)

    def _has_link(self, device):
        return f" {device}:" in self.namespace.ip("-o", "link")

    def _settings(self, number):
        ip4, ip6 = _address(number)
        return Settings(name=f"vm{number}", mac=f"52:54:00:77:00:{number:02x}",
                        ip4=f"{ip4}/24", ip6=f"{ip6}/64")

    def _host_address(self, device):
        """Gives the host its addresses on the segment."""
        self.namespace.ip("addr", "add", f"{HOST_IP4}/24", "dev", device)
        self.namespace.ip("addr", "add", f"{HOST_IP6}/64", "dev", device, "nodad")
        self.namespace.ip("link", "set", device, "up")

    def _host_server(self):
        """An iperf3 server on the host."""
        log = self.directory / "iperf3-server.log"
        server = host.spawn([*self.namespace.prefix, "iperf3", "-s"], log)
        self._stack.callback(host.end, server)

    def _network(self):
        """Sets up what the guests' NICs are attached to."""
        raise NotImplementedError

    def _guest(self, number):
        """Boots one guest, without waiting for it."""
        raise NotImplementedError


class Ringswitch(Testbed):
    """One ringswitch process: a vhost-user port for each guest, a TAP uplink to the host."""

    label, key = "ringswitch", "ringswitch"
    options = ()

    def __init__(self, directory, binary):
        super().__init__(directory)
        self._binary = binary
        self._sockets = {number: self.directory / f"vm{number}.sock" for number in (1, 2)}

    def _network(self):
        log = self.directory / "ringswitch.log"
        ports = [word for n, path in self._sockets.items() for word in ("--port", f"vm{n}={path}")]
        command = [self._binary, "run", *ports, "--uplink", UPLINK, *self.options]
        switch = self._switch = host.spawn([*self.namespace.prefix, *command], log)
        self._stack.push(lambda _kind, reason, _trace: self._stop_switch(switch, log, reason))
        self._wait_up(log, self._switch_is_up)
        self._host_address(UPLINK)

    def _switch_is_up(self):
        return self._has_link(UPLINK) and all(path.is_socket() for path in self._sockets.values())

    @staticmethod
    def _stop_switch(switch, log, reason):
        """Ends the switch; `reason` is the exception that makes the testbed end, if one does."""
        ended_before = switch.poll() is not None
        status = host.end(switch)
        if reason is not None and not isinstance(reason, host.Problem):
            return  # an interruption stays one, whatever state it met the switch in
        if ended_before:
            # The likely cause of whatever else went wrong.
            raise host.Problem(f"ringswitch ended while it was used, with exit code {status} "
                               f"(log: {log})") from reason
        if status != 0 and reason is None:
            raise host.Problem(f"ringswitch ended on SIGTERM with exit code {status} (log: {log})")

    def _guest(self, number):
        settings = self._settings(number)
        settings.socket = str(self._sockets[number])
        settings.device = LONG_RINGS
        return Guest.boot(settings, self.directory)


class RingswitchPoll(Ringswitch):
    """The same, polling."""

    label, key, polls = "ringswitch --poll", "ringswitch_poll", True
    options = ("--poll",)


class Bridge(Testbed):
    """A Linux bridge with a TAP device for each guest, served by QEMU's own virtio device."""

    label, key = "TAP + bridge", "bridge"

    def _network(self):
        self.namespace.ip("link", "add", BRIDGE, "type", "bridge", "forward_delay", "0")
        for number in (1, 2):
            self.namespace.ip("tuntap", "add", "dev", f"tap{number}", "mode", "tap")
            self.namespace.ip("link", "set", f"tap{number}", "master", BRIDGE, "up")
        self._host_address(BRIDGE)

    def _guest(self, number):
        settings = self._settings(number)
        settings.tap = f"tap{number}"
        return Guest.boot(settings, self.directory, self.namespace.prefix)


class OvsDpdk(Testbed):
    """OVS-DPDK: a vhost-user port for each guest, the bridge's own TAP device for the host.

    With TSO, which its documentation calls experimental: without, TCP has less than a third.
    """

    label, key, polls = "OVS-DPDK with TSO", "ovs", True

    def __init__(self, directory):
        super().__init__(directory)
        cpus = sorted(os.sched_getaffinity(0))
        if len(cpus) < 2:
            raise host.Problem("OVS-DPDK takes a CPU for itself: two are needed", host.EXIT_MISSING)
        self._ovs = ovs.OvsDpdk(self.directory, f"ringswitch-{os.getpid()}", cpus[:2], tso=True)
        self._sockets = {number: self.directory / f"vm{number}.sock" for number in (1, 2)}

    def _network(self):
        log = self.directory / "ovs.log"
        self._stack.callback(self._ovs.end)
        self._ovs.start_database()
        for path in self._sockets.values():
            self._ovs.add_port(path)
        self._switch = host.spawn([*self.namespace.prefix, *self._ovs.command()], log,
                                  env=self._ovs.environment)
        self._stack.callback(host.end, self._switch)
        self._wait_up(log, lambda: self._has_link(ovs.BRIDGE))
        self._host_address(ovs.BRIDGE)

    def _guest(self, number):
        settings = self._settings(number)
        settings.socket = str(self._sockets[number])
        settings.vhost_mode = "server"
        settings.device = LONG_RINGS
        return Guest.boot(settings, self.directory)
