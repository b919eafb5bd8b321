"""What plays both guests, on one CPU: every frame that one guest receives, it sends again, so a
fixed number of frames goes round and the rate is that of the slower side.

A window is a dict: `pps` (frames received per second, both guests together), `gen_cycles` (TSC
cycles per frame of rounds that moved some), `gen_busy` (their share of all time), and of the fake
guest also `ns_p50`, `ns_p99` (one way) and `kicks`.
"""

import json
import re
import time

import host
from console import Console

MACS = ("02:00:00:00:00:01", "02:00:00:00:00:02")
RING_PACKED = 1 << 34
PROMPT = r"testpmd> $"
BURST = 32  # testpmd's
BUFFER = 2048


class Generator:
    """Two guests; the base of both kinds."""

    def __init__(self, place, backend):
        self.place, self.backend = place, backend
        self.console = None
        self.flying = 0  # frames, both directions together
        self.features = 0  # negotiated virtio features

    def _check_features(self):
        """A table's name must not promise what was not negotiated."""
        if self.place.table.packed and not self.features & RING_PACKED:
            raise Unsupported(f"{self.backend.name} has no packed rings")

    def end(self):
        """Ends the process."""
        if self.console:
            self.console.end()


class Unsupported(Exception):
    """The backend can't carry this table's load: its rows stay empty."""


class Testpmd(Generator):
    """dpdk-testpmd with two virtio_user ports: a driver that nobody here wrote."""

    name, programs = "testpmd", ("dpdk-testpmd",)

    def start(self):
        """Starts it; returns before the guests are connected."""
        table, control = self.place.table, self.place.cpus[0]
        ports = [f"--vdev=net_virtio_user{n},path={path},mac={MACS[n]},queues=1,"
                 f"queue_size={table.ring},server={int(not self.backend.listens)},{table.devargs}"
                 for n, path in enumerate(self.backend.sockets)]
        self.console = Console(
            ["stdbuf", "-oL", "dpdk-testpmd", "--lcores", f"0@{control},1@{control}", "--no-pci",
             "--in-memory", "--no-telemetry", f"--file-prefix={self.place.prefix}-gen",
             "-m", "256", "--single-file-segments", "--force-max-simd-bitwidth=512",
             "--log-level=pmd.net.virtio.init:debug", *ports, "--", "-i", "--nb-cores=1",
             "--forward-mode=io", "--record-core-cycles", f"--rxd={table.ring}",
             f"--txd={table.ring}", f"--eth-peer=0,{MACS[1]}", f"--eth-peer=1,{MACS[0]}",
             f"--mbuf-size={BUFFER + 256}", "--total-num-mbufs=16384"],
            self.place.directory / "generator.log")

    def connect(self):
        """Waits until frames pass: links are up, and the switch has learned both addresses."""
        said = self.console.wait(r"Checking link statuses[\s\S]*" + PROMPT, 60)
        negotiated = re.findall(r"features after negotiate = ([0-9a-fx]+)", said)
        self.features = int(negotiated[-1], 16) if negotiated else 0
        self._check_features()
        deadline = time.monotonic() + 30
        while self._passed() < 2:
            if time.monotonic() > deadline:
                raise host.Problem(f"no frame passes {self.backend.name} "
                                   f"(log: {self.console.log})")

    def _passed(self):
        self._ask("clear port stats all", PROMPT)
        self._ask("start tx_first 1", PROMPT)
        time.sleep(0.3)
        self._ask("stop", r"Done\.[\s\S]*" + PROMPT)
        said = self._ask("show port stats all", r"port 1 [\s\S]*" + PROMPT)
        return sum(int(count) > 0 for count in re.findall(r"RX-packets:\s+(\d+)", said))

    def _ask(self, line, pattern):
        return self.console.ask(line, pattern)

    def load(self, size):
        """Puts frames of `size` bytes into the loop."""
        if self.flying:
            self._ask("stop", r"Done\.[\s\S]*" + PROMPT)
        table = self.place.table
        wanted = table.inflight
        if size > 1600:  # half of the receiver's buffers at most
            wanted = max(2, min(wanted, table.ring // (size // 1024 + 2) // 2))
        burst = min(BURST, wanted)
        segments = [min(BUFFER, size - start) for start in range(0, size, BUFFER)]
        self._ask(f"set burst {burst}", PROMPT)
        self._ask("set txpkts " + ",".join(map(str, segments)), PROMPT)
        self._ask(f"start tx_first {wanted // burst}", PROMPT)
        self.flying = wanted // burst * burst * 2
        time.sleep(0.2)

    def window(self, secs):
        """Counts for `secs` seconds."""
        self._ask("clear fwd stats all", PROMPT)
        self._ask("show port stats all", r"port 1 [\s\S]*" + PROMPT)
        time.sleep(secs)
        said = self._ask("show port stats all", r"port 1 [\s\S]*" + PROMPT)
        pps = sum(int(rate) for rate in re.findall(r"Rx-pps:\s+(\d+)", said))
        said = self._ask("show fwd stats all", r"Accumulated[\s\S]*" + PROMPT)
        cycles = re.findall(r"CPU cycles/packet=([\d.]+)", said)
        cycles = float(cycles[-1]) if cycles else 0.0
        return {"pps": pps, "gen_cycles": cycles, "gen_busy": cycles * pps / self.place.tsc_hz}


class FakeGuest(Generator):
    """The fake guests of tests/fakeguest in a tight loop: frames up to 64 KiB, one-way times."""

    name, programs = "fakeguest", ()

    def start(self):
        """Starts it; returns before the guests are connected."""
        table = self.place.table
        flags = [] if self.backend.listens else ["--listen"]
        flags += [] if table.mergeable else ["--no-mergeable"]
        flags += ["--in-order"] if table.in_order else []
        flags += ["--packed"] if table.packed else []
        # Linux's largest merged buffer for TSO, testpmd's otherwise; both with the header.
        buffer = 4096 if table.tso else BUFFER + 12
        self.console = Console(
            ["taskset", "-c", str(self.place.cpus[0]), self.place.programs["generator"],
             *self.backend.sockets, "--ring", table.ring, "--mtu", table.mtu, "--huge-pages",
             "--rx-buffer", buffer, "--max-frame", max(table.sizes), *flags],
            self.place.directory / "generator.log")

    def connect(self):
        """Waits until frames pass."""
        try:
            self.console.wait(r'"ready": true', 60)
        except host.Problem:
            # A ring's format is settled before the negotiation: our guests can't fall back.
            if "packed rings were not offered" in self.console.text():
                self._check_features()
            raise

    def _ask(self, line):
        said = self.console.ask(line, r"\{.*\}\n")
        return json.loads(next(row for row in said.splitlines() if row.startswith("{")))

    def load(self, size):
        """Puts frames of `size` bytes into the loop."""
        said = self._ask(f"load {size} {self.place.table.inflight}")
        self.flying, self.features = 2 * said["in_flight"], int(said["features"], 16)
        if said["lost"]:
            host.say(f"{self.backend.name} lost {said['lost']} frames of the last size")

    def window(self, secs):
        """Counts for `secs` seconds."""
        said = self._ask(f"window {secs}")
        if not said["whole"]:
            raise Unsupported(f"{self.backend.name} cuts frames up")
        return {"pps": said["frames"] / said["seconds"], "gen_cycles": said["cycles_per_frame"],
                "gen_busy": said["busy"], "ns_p50": said["ns_p50"], "ns_p99": said["ns_p99"],
                "kicks": said["kicks"]}


ALL = {generator.name: generator for generator in (Testpmd, FakeGuest)}
