"""Two hosts, each a network namespace with a switch of its own, and a guest that moves to and fro.

The uplinks of both switches lead to one bridge in a third namespace, the network outside. There a
station watches the guest (outside.py): it asks for echoes all the time, keeps a TCP connection in
each direction whose bytes are hashed at both ends, and runs iperf3. Each host has a station of its
own, too, at a second TAP port of its switch, which speaks IPv6 only: the echoes over IPv4 are those
of the station outside.

The guest's reader of the stream from outside stands still while the guest moves: what arrives then
waits in memory that the switch wrote, and the digest is wrong if its pages were not logged. (With
mrg_rxbuf=off, that is: otherwise Linux writes to the same pages, and QEMU sends them for that.)
"""

import contextlib
import json
import pathlib
import re
import signal
import subprocess
import sys
import threading
import time

import host
import outside
from guest import Guest
from netns import Namespace
from qemu import Settings
from qmp import Qmp

GUEST, GUEST6, OUTSIDE, MAC = "10.77.0.1", "fd77::1", "10.77.0.254", "52:54:00:77:00:01"
MEMORY = 160
UPLINK, LOCAL, BRIDGE = "rs0", "rs1", "br0"
# The switch's name for the mapping of QEMU's dirty log.
LOG_MAPPING = "vhost-log"
PATIENCE = 120
# In that time a guest that moved answers, on a busy machine too.
AWAKE = 60
EXIT_LOST = 3
# Bytes per second: as fast as it goes, and so slowly that a migration can be cancelled.
FAST, SLOW = 1 << 30, 4 << 20
# What iperf3 sends: well below what a guest under TCG takes, so that nothing is lost for want of
# processor time.
LOAD = "40M"
# How long what the guest missed may come after it runs again.
SETTLE = 2.0

_CONFIG = """
[[port]]
name = "vm"
type = "vhost-user"
socket = "{socket}"
[[port]]
name = "uplink"
type = "tap"
device = "{uplink}"
bridge = "{bridge}"
uplink = true
[[port]]
name = "local"
type = "tap"
device = "{local}"
"""


class GuestLost(host.Problem):
    """The guest stands still after it moved. Under TCG, QEMU 7.2 does that to a guest now and then
    on a busy machine, with a NIC on a TAP device as well: on its own, it says nothing of the switch.
    """


def _backlog_drops():
    """How many packets the kernel dropped since it didn't come to them in time."""
    lines = pathlib.Path("/proc/net/softnet_stat").read_text(encoding="ascii").splitlines()
    return sum(int(line.split()[1], 16) for line in lines)


def wait_for(what, probe, patience=PATIENCE):
    """What `probe` returns as soon as it returns something."""
    deadline = time.monotonic() + patience
    while not (found := probe()):
        if time.monotonic() > deadline:
            raise host.Problem(f"no {what} within {patience} s")
        time.sleep(0.02)
    return found


class Host(contextlib.AbstractContextManager):
    """A host: a namespace, a switch, a place for the guest, a station at fd77::10<number>."""

    def __init__(self, number, directory, binary):
        self.number = number
        self.socket = directory / f"vm-{number}.sock"
        self._directory, self._binary = directory, binary
        self._log = directory / f"ringswitch-{number}.log"
        self._stack = contextlib.ExitStack()
        self._switch = None
        self.namespace = None

    def __enter__(self):
        with self._stack:
            self.namespace = self._stack.enter_context(Namespace(f"host{self.number}"))
            ip = self.namespace.ip
            ip("link", "add", BRIDGE, "up", "type", "bridge", "forward_delay", "0")
            config = self._directory / f"ringswitch-{self.number}.toml"
            config.write_text(_CONFIG.format(socket=self.socket, uplink=UPLINK, bridge=BRIDGE,
                                             local=LOCAL), encoding="utf-8")
            command = [self._binary, "run", "--config", config]
            self._switch = host.spawn([*self.namespace.prefix, *command], self._log)
            self._stack.callback(self._end_switch)
            wait_for("switch that is up", self._is_up)
            ip("-6", "addr", "add", f"fd77::10{self.number}/64", "dev", LOCAL, "nodad")
            ip("link", "set", LOCAL, "up")
            self._stack = self._stack.pop_all()
        return self

    def __exit__(self, *exception):
        return self._stack.__exit__(*exception)

    def _said(self):
        return self._log.read_text(encoding="utf-8", errors="replace")

    def _is_up(self):
        if self._switch.poll() is not None:
            raise host.Problem(f"ringswitch ended at once (log: {self._log})")
        return "ready: " in self._said()

    def _end_switch(self):
        before = self._switch.poll()
        status = host.end(self._switch)
        if before is not None or status != 0:
            raise host.Problem(f"ringswitch ended with exit code {status} (log: {self._log})")

    def has_log(self):
        """Whether the switch has a dirty log mapped."""
        maps = pathlib.Path(f"/proc/{self._switch.pid}/maps").read_text(encoding="ascii")
        return LOG_MAPPING in maps

    def kernel_drops(self):
        """How many frames the kernel dropped since the switch didn't read them in time."""
        links = json.loads(self.namespace.ip("-s", "-j", "link"))
        return sum(link["stats64"]["tx"]["dropped"] for link in links)

    def statistics(self):
        """The counters of the switch's ports."""
        known = len(self._said())
        self._switch.send_signal(signal.SIGUSR1)
        said = wait_for("statistics", lambda: "stats end" in (t := self._said()[known:]) and t)
        return {port: {name: int(count) for name, count in re.findall(r"(\w+)=(\d+)", counters)}
                for port, counters in re.findall(r"stats port=(\w+) (.*)", said)}

    def reaches_guest(self):
        """Whether the guest answers the host's station."""
        try:
            host.run(*self.namespace.prefix, "busybox", "ping6", "-c", "1", "-W", "1", GUEST6)
        except host.Problem:
            return False
        return True


class Hosts(contextlib.AbstractContextManager):
    """Both hosts, the network outside, and the guest at the first host."""

    def __init__(self, directory, binary, nic):
        """`directory` takes sockets and logs, and its path must be short; `nic` has Settings of the
        guest's NIC."""
        self._directory, self._binary, self._nic = pathlib.Path(directory), binary, nic
        self._stack = contextlib.ExitStack()
        self._moves = 0
        self.hosts, self.at = [], 0
        self.outside = self.guest = self._qmp = None

    def __enter__(self):
        with self._stack:
            enter = self._stack.enter_context
            self.outside = enter(Namespace("outside"))
            self.outside.ip("link", "add", BRIDGE, "up", "type", "bridge", "forward_delay", "0")
            self.outside.ip("addr", "add", f"{OUTSIDE}/24", "dev", BRIDGE)
            for number in (1, 2):
                self.hosts.append(enter(Host(number, self._directory, self._binary)))
                self._connect(self.hosts[-1])
            self._stack.callback(lambda: self.guest and self.guest.stop())
            self.guest, self._qmp = self._start(self.hosts[0])
            self.guest.wait_ready()
            self._stack = self._stack.pop_all()
        return self

    def __exit__(self, *exception):
        return self._stack.__exit__(*exception)

    def _connect(self, to):
        """A cable from the network outside to the bridge of a host."""
        end, namespace = f"host{to.number}", to.namespace
        self.outside.ip("link", "add", end, "type", "veth", "peer", "name", "cable", "netns",
                        namespace.name)
        self.outside.ip("link", "set", end, "master", BRIDGE, "up")
        namespace.ip("link", "set", "cable", "master", BRIDGE, "up")

    def _start(self, at, incoming=None):
        """Starts a QEMU at a host, to boot the guest or to receive it."""
        stem = f"vm-{self._moves}"
        self._moves += 1
        qmp = str(self._directory / f"{stem}.qmp")
        settings = Settings(name="vm", socket=str(at.socket), mac=MAC, ip4=f"{GUEST}/24",
                            ip6=f"{GUEST6}/64", memory=MEMORY, cpus=1, qmp=qmp, incoming=incoming,
                            **self._nic)
        guest = Guest.boot(settings, self._directory, stem=stem)
        try:
            return guest, Qmp(qmp, guest.is_alive)
        except BaseException:
            guest.stop()
            raise

    def learned_at(self):
        """The number of the host behind which the bridge outside knows the guest; 0: nowhere."""
        said = host.run(*self.outside.prefix, "bridge", "fdb", "show", "br", BRIDGE)
        found = re.search(rf"^{MAC} dev host(\d)", said, re.MULTILINE)
        return int(found[1]) if found else 0

    def _begin(self, bandwidth):
        """Begins to move the guest to the other host; returns what receives it."""
        channel = f"unix:{self._directory}/move-{self._moves}.sock"
        receiver = self._start(self.hosts[1 - self.at], incoming=channel)
        self._qmp.run("migrate-set-parameters", max_bandwidth=bandwidth, downtime_limit=300)
        self._qmp.run("migrate", uri=channel)
        return receiver

    def _state(self, *wanted):
        """Waits until the migration is in one of these states; returns what QEMU says of it."""
        def probe():
            said = self._qmp.run("query-migrate")
            if said["status"] in ("failed", "cancelled") and said["status"] not in wanted:
                raise host.Problem(f"the migration {said['status']}: {said.get('error-desc')}")
            return said if said["status"] in wanted else None
        return wait_for(f"migration that is {' or '.join(wanted)}", probe)

    def cancel(self):
        """Begins to move the guest, and cancels that under way. Returns what was seen."""
        here = self.hosts[self.at]
        begin = time.monotonic()
        guest, qmp = self._begin(SLOW)
        wait_for("first pass", lambda: self._state("active")["ram"]["transferred"] > SLOW // 2)
        logged = here.has_log()
        self._qmp.run("migrate_cancel")
        self._state("cancelled")
        end = time.monotonic()
        qmp.close()
        guest.stop()
        wait_for("end of logging", lambda: not here.has_log())
        return {"from": here.number, "begin": begin, "end": end, "logged": logged}

    def move(self):
        """Moves the guest to the other host. Returns what was seen."""
        source, target = self.hosts[self.at], self.hosts[1 - self.at]
        begin = time.monotonic()
        guest, qmp = self._begin(FAST)
        said = self._state("completed")
        wait_for("guest that goes on", lambda: qmp.run("query-status")["status"] == "running")
        end = time.monotonic()
        self._qmp.close()
        self.guest.stop()
        self.guest, self._qmp, self.at = guest, qmp, 1 - self.at
        try:
            self.guest.wait_awake(AWAKE)
        except host.Problem as problem:
            answers = any(each.reaches_guest() for each in self.hosts)
            echoes = "answers" if answers else "doesn't answer"
            raise GuestLost(f"{problem}; it {echoes} echo requests", EXIT_LOST) from problem
        wait_for("guest that is known to be elsewhere", lambda: self.learned_at() == target.number)
        for each in self.hosts:
            wait_for(f"guest that host {each.number} reaches", each.reaches_guest)
        return {"from": source.number, "to": target.number, "begin": begin, "end": end,
                "passes": said["ram"]["dirty-sync-count"], "mib": said["ram"]["transferred"] >> 20,
                "qemu_downtime_ms": said["downtime"]}


class Traffic(contextlib.AbstractContextManager):
    """What goes on between the guest and the station outside while the guest moves."""

    def __init__(self, hosts, directory):
        self._hosts, self._directory = hosts, pathlib.Path(directory)
        self._station = self._load = self._reader = self._report = None
        self._heard = []
        self._backlog = _backlog_drops()
        self._stack = contextlib.ExitStack()

    def __enter__(self):
        check = self._hosts.guest.check
        # Room for what arrives while the reader stands still.
        check("echo 4096 4194304 6291456 >/proc/sys/net/ipv4/tcp_rmem")
        check(f"mkfifo /run/down /run/up /run/copy; tail -f /dev/null | nc -l -p {outside.DOWN} "
              ">/run/down & echo $! >/run/down.pid; sha256sum </run/down >/run/down.sum &")
        prefix = self._hosts.outside.prefix
        with self._stack:
            self._station = subprocess.Popen(
                [*prefix, sys.executable, outside.__file__, GUEST, MAC, BRIDGE], text=True,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
            if json.loads(self._station.stdout.readline() or "0") != "ready":
                raise host.Problem("the station outside does not start")
            self._reader = threading.Thread(target=self._read)
            self._reader.start()
            self._stack.callback(self._reader.join)
            self._stack.callback(host.end, self._station)
            check(f"sha256sum </run/copy >/run/up.sum & nc {OUTSIDE} {outside.UP} </run/up & "
                  "(while [ ! -e /run/stop ]; do dd if=/dev/urandom bs=16k count=2; sleep 0.1; done "
                  "| tee /run/copy >/run/up) 2>/dev/null &")
            log = self._directory / "iperf3.json"
            command = ["iperf3", "-c", GUEST, "-b", LOAD, "-t", "86400", "-J"]
            self._load = host.spawn([*prefix, *command], log)
            self._stack.callback(host.end, self._load)
            self._stack = self._stack.pop_all()
        return self

    def __exit__(self, *exception):
        return self._stack.__exit__(*exception)

    def _read(self):
        """Takes what the station says until it ends."""
        for line in self._station.stdout:
            said = json.loads(line)
            if isinstance(said, list):
                self._heard.append(said)
            else:
                self._report = said

    def announced(self, begin):
        """How often the guest was announced since then, in which ways."""
        ways = [way for at, way in list(self._heard) if at >= begin]
        return {way: ways.count(way) for way in sorted(set(ways))}

    @contextlib.contextmanager
    def parked(self):
        """The guest's reader stands still: bytes from outside wait in its receive buffers."""
        self._hosts.guest.check("kill -STOP $(cat /run/down.pid)")
        yield
        self._hosts.guest.check("kill -CONT $(cat /run/down.pid)")

    def finish(self):
        """Ends all streams in order. Returns what the station saw, and what the guest did."""
        check = self._hosts.guest.check
        alive = self._load.poll() is None
        host.end(self._load, first=signal.SIGINT)
        check("touch /run/stop")
        self._station.stdin.close()
        self._reader.join(PATIENCE)
        report = self._report
        if report is None:
            raise host.Problem("the station outside failed")
        for stream in ("down", "up"):
            digest = check(f"while [ ! -s /run/{stream}.sum ]; do sleep 0.1; done; "
                           f"cat /run/{stream}.sum", PATIENCE)
            report[stream]["guest_sha256"] = digest.split()[0]
        said = check("grep ^Icmp: /proc/net/snmp").split()
        names = said[1:len(said) // 2]
        report["echo"]["guest_replies"] = int(said[1 + len(said) // 2:][names.index("OutEchoReps")])
        load = json.loads((self._directory / "iperf3.json").read_text(encoding="utf-8"))
        report["kernel_drops"] = _backlog_drops() - self._backlog + sum(
            each.kernel_drops() for each in self._hosts.hosts)
        report["iperf3"] = {"alive": alive, "bytes": load["end"]["sum_sent"]["bytes"],
                            "retransmits": load["end"]["sum_sent"]["retransmits"]}
        return report


def outage(echo, begin, end):
    """What the echoes tell of the time from `begin` to `end` and a little longer: the longest time
    without a reply in seconds, and how many requests had no reply, in that time and besides."""
    sent, replies = echo["sent"], dict(map(tuple, echo["received"]))
    numbers = [n for n, at in enumerate(sent) if begin <= at <= end + SETTLE]
    times = sorted(replies[n] for n in numbers if n in replies)
    if not times:
        raise host.Problem("no echo at all while the guest moved")
    gap, before = max((b - a, a) for a, b in zip(times, times[1:]))
    lost = [sent[n] for n in numbers if n not in replies]
    within = sum(before - gap < at < before + gap for at in lost)
    return {"outage": gap, "requests": len(numbers), "lost": within, "lost_besides": len(lost) - within}


def tour(directory, binary, rounds, cancel=False, **nic):
    """Moves the guest to the second host and back, `rounds` times, under traffic; before that, with
    `cancel`, it begins to and thinks better of it. `nic` has Settings of the guest's NIC. Returns all
    that was seen."""
    with Hosts(directory, binary, nic) as hosts, Traffic(hosts, directory) as traffic:
        time.sleep(SETTLE)
        cancelled = None
        if cancel:
            host.progress("a migration that is cancelled")
            with traffic.parked():
                cancelled = hosts.cancel()
            time.sleep(SETTLE)
            cancelled["announced"] = traffic.announced(cancelled["begin"])
        moves = []
        for number in range(2 * rounds):
            host.progress(f"migration {number + 1} of {2 * rounds}")
            with traffic.parked():
                moves.append(move := hosts.move())
            wait_for("announcement", lambda: traffic.announced(move["begin"]))
            time.sleep(SETTLE)
            move["announced"] = traffic.announced(move["begin"])
        report = traffic.finish()
        statistics = [each.statistics() for each in hosts.hosts]
    echo = report.pop("echo")
    for move in [*moves, *([cancelled] if cancelled else [])]:
        begin, end = move.pop("begin"), move.pop("end")
        move.update(outage(echo, begin, end), seconds=end - begin)
    numbers = [number for number, _ in echo["received"]]
    report["echo"] = {"requests": len(echo["sent"]), "replies": len(numbers),
                      "different": len(set(numbers)), "damaged": echo["damaged"],
                      "guest_replies": echo["guest_replies"]}
    return {"cancelled": cancelled, "moves": moves, "statistics": statistics, **report}
