"""OVS-DPDK in a directory: a database, its settings, and the command line of the daemon.

What is set is what the comparisons need: a userspace bridge with one polling thread and its default
flow, NORMAL, which learns addresses. Nothing of a system-wide OVS is touched. Whoever starts the
daemon also ends it; this module ends the database.
"""

import os
import time

import host

VSWITCHD = "/usr/lib/openvswitch-switch-dpdk/ovs-vswitchd-dpdk"
SCHEMA = "/usr/share/openvswitch/vswitch.ovsschema"
PROGRAMS = (VSWITCHD, "ovs-vsctl", "ovsdb-server")
BRIDGE = "br0"
# Of 2 MiB, for the frames that are on their way. Without a limit it takes all that there are.
HUGE_PAGES = 256
START_PATIENCE = 60


class OvsDpdk:
    """The database of one OVS-DPDK. Its bridge is BRIDGE; the guests listen, the ports connect."""

    def __init__(self, directory, prefix, cpus, tso):
        """`directory` takes all its files; its path must be short. `prefix` tells its DPDK files
        from others', `cpus` are the CPU of its slow parts and the one that the polling thread takes
        whole, `tso` is whether frames that a guest left uncut pass as they are."""
        self._directory, self._prefix, self._cpus, self._tso = directory, prefix, cpus, tso
        self._socket = f"unix:{directory}/db.sock"
        self._database = None
        self._ports = 0

    @property
    def environment(self):
        """The environment of its programs."""
        directory = str(self._directory)
        return dict(os.environ, OVS_RUNDIR=directory, OVS_DBDIR=directory, OVS_LOGDIR=directory)

    @property
    def management(self):
        """The socket on which the bridge takes OpenFlow."""
        return f"unix:{self._directory}/{BRIDGE}.mgmt"

    def start_database(self):
        """Starts the database and writes the settings into it. The daemon may come afterwards."""
        directory = self._directory
        host.run("ovsdb-tool", "create", directory / "conf.db", SCHEMA)
        log = directory / "ovsdb-server.log"
        self._database = host.spawn(["ovsdb-server", directory / "conf.db",
                                     f"--remote=p{self._socket}",
                                     f"--unixctl={directory}/ovsdb.ctl"], log, env=self.environment)
        deadline = time.monotonic() + START_PATIENCE
        while not (directory / "db.sock").is_socket():
            if self._database.poll() is not None or time.monotonic() > deadline:
                raise host.Problem(f"no OVS database (log: {log})")
            time.sleep(0.05)
        self._configure()

    def _vsctl(self, *words):
        host.run("ovs-vsctl", f"--db={self._socket}", "--no-wait", *words)

    def _configure(self):
        control, cpu = self._cpus
        memory = 2 * HUGE_PAGES
        self._vsctl("init")
        self._vsctl("set", "Open_vSwitch", ".", *(f"other_config:{setting}" for setting in (
            "dpdk-init=true", f"pmd-cpu-mask={1 << cpu:#x}", f"dpdk-lcore-mask={1 << control:#x}",
            f"dpdk-socket-mem={memory}", f"dpdk-socket-limit={memory}", "vhost-iommu-support=false",
            f"dpdk-extra=--no-pci --in-memory --file-prefix={self._prefix}",
            f"userspace-tso-enable={'true' if self._tso else 'false'}")))
        self._vsctl("add-br", BRIDGE, "--", "set", "bridge", BRIDGE, "datapath_type=netdev",
                    "fail-mode=standalone")

    def add_port(self, path, mtu=1500):
        """Adds a port that connects to the socket `path`, where a guest listens."""
        name = f"p{self._ports}"
        self._ports += 1
        self._vsctl("add-port", BRIDGE, name, "--", "set", "Interface", name,
                    "type=dpdkvhostuserclient", f"options:vhost-server-path={path}",
                    f"mtu_request={mtu}", f"ofport_request={self._ports}")

    def command(self):
        """The daemon's command line. It makes TAP devices with names that others use: it is to run
        in a network namespace of its own."""
        return [VSWITCHD, self._socket, f"--pidfile={self._directory}/vswitchd.pid",
                f"--unixctl={self._directory}/vswitchd.ctl"]

    def end(self):
        """Ends the database."""
        if self._database:
            host.end(self._database)
