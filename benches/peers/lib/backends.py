"""The switches that are compared. Each serves two vhost-user ports, `s0` and `s1` in its directory,
and polls on one CPU. It must bear being stopped and woken (SIGSTOP, SIGCONT).
"""

import re
import signal
import time

import host
import ovs
from console import Console

START_PATIENCE = 60


class Backend:
    """A switch process; the base of all."""

    name = ""  # as in the tables
    programs = ()  # what must be installed
    listens = True  # on its sockets; otherwise the guests do, and it connects

    def __init__(self, place):
        """`place` tells directory, CPUs, table and the programs of this repository."""
        self.place = place
        self.sockets = [place.directory / f"s{port}" for port in (0, 1)]
        self.console = None

    def start(self):
        """Starts the process; returns when guests may connect."""
        self.console = Console(self.command(), self.place.directory / f"{self.name}.log",
                               self.environment())
        if self.listens:
            deadline = time.monotonic() + START_PATIENCE
            while not all(path.is_socket() for path in self.sockets):
                self.console.check()
                if time.monotonic() > deadline:
                    raise host.Problem(f"{self.name} makes no sockets (log: {self.console.log})")
                time.sleep(0.05)

    def command(self):
        """Its command line."""
        raise NotImplementedError

    def environment(self):
        """Its environment: None is ours."""
        return None

    def connected(self):
        """Called when the guests are connected: what is still to be set up."""

    def own(self):
        """(frames, busy TSC cycles) by its own counters so far; None without such."""
        return None

    def end(self):
        """Ends the process."""
        if self.console:
            self.console.end()


class Testpmd(Backend):
    """dpdk-testpmd with two net_vhost ports, forwarding from one to the other without a look at the
    frames: the floor of two copies."""

    name, programs = "testpmd", ("dpdk-testpmd",)

    def command(self):
        offloads = ",tso=1,legacy-ol-flags=1" if self.place.table.tso else ""
        ports = [f"--vdev=net_vhost{n},iface={path},queues=1{offloads}"
                 for n, path in enumerate(self.sockets)]
        control, cpu = self.place.cpus
        ring = self.place.table.ring
        return ["stdbuf", "-oL", "dpdk-testpmd", "--lcores", f"0@{control},1@{cpu}", "--no-pci",
                "--in-memory", "--no-telemetry", f"--file-prefix={self.place.prefix}-be",
                "-m", "256", *ports, "--", "-i", "--auto-start", "--nb-cores=1",
                "--forward-mode=io", f"--rxd={ring}", f"--txd={ring}", "--total-num-mbufs=32768"]


class Ovs(Backend):
    """OVS-DPDK with one polling thread and its default flow, NORMAL: a learning switch."""

    name, listens = "ovs", False
    programs = ovs.PROGRAMS
    flows = None

    def __init__(self, place):
        super().__init__(place)
        self._ovs = ovs.OvsDpdk(place.directory, f"{place.prefix}-be", place.cpus, place.table.tso)

    def environment(self):
        return self._ovs.environment

    def start(self):
        self._ovs.start_database()
        for path in self.sockets:
            self._ovs.add_port(path, self.place.table.mtu)
        super().start()

    def command(self):
        return ["unshare", "-n", *self._ovs.command()]

    def connected(self):
        deadline = time.monotonic() + START_PATIENCE
        while True:
            self.console.check()
            try:
                host.run("ovs-ofctl", "dump-flows", self._ovs.management, timeout=10)
                break
            except host.Problem:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)
        if self.flows:
            path = self.place.directory / "flows"
            path.write_text(self.flows, encoding="ascii")
            host.run("ovs-ofctl", "replace-flows", self._ovs.management, path)

    def end(self):
        super().end()
        self._ovs.end()


class OvsFlow(Ovs):
    """OVS-DPDK with two flows from port to port: no learning."""

    name = "ovs-flow"
    flows = "in_port=1,actions=output:2\nin_port=2,actions=output:1\n"


class Ringswitch(Backend):
    """This repository's switch, all default stages on."""

    name = "ringswitch"

    def command(self):
        ports = [word for n, path in enumerate(self.sockets)
                 for word in ("--port", f"vm{n}={path}")]
        return ["taskset", "-c", str(self.place.cpus[1]), self.place.programs["ringswitch"],
                "run", "--poll", *ports]

    def own(self):
        start = self.console.size()
        self.console.signal(signal.SIGUSR1)
        said = self.console.wait(r"stats end", start=start)
        workers = re.findall(r"stats worker=\d+ frames=(\d+) busy_cycles=(\d+)", said)
        if not workers:
            raise host.Problem(f"ringswitch told no counters (log: {self.console.log})")
        return tuple(sum(int(worker[field]) for worker in workers) for field in (0, 1))


ALL = {backend.name: backend for backend in (Testpmd, Ovs, OvsFlow, Ringswitch)}
