"""The questions that `benches/alone/run` answers: what runs, what is measured, how it is shown."""

import dataclasses
import re
import signal
import time

import backends
import generators
import host
import machine
from pair import Pair, Place
from tables import Table

START_PATIENCE = 60
CAPACITY = 131072
SINGLE_FRAMES = 200


@dataclasses.dataclass(frozen=True)
class Setup(Place):
    """A place, and how large a switch and its guests are."""

    ports: int = 2
    stations: int = 2  # behind both guests together
    pairs: int = 1
    mode: str = "poll"


class Switch(backends.Ringswitch):
    """Ringswitch by a configuration file."""

    def __init__(self, place):
        super().__init__(place)
        self.sockets = [place.directory / f"s{port}" for port in range(place.ports)]

    def command(self):
        ports = "".join(f'[[port]]\nname = "vm{number}"\ntype = "vhost-user"\n'
                        f'socket = "{path}"\n' for number, path in enumerate(self.sockets))
        file = self.place.directory / "ringswitch.toml"
        file.write_text(f'[workers]\nmode = "{self.place.mode}"\n\n[mac-table]\n'
                        f'capacity = {CAPACITY}\nper-port = {CAPACITY}\n\n{ports}', encoding="ascii")
        return ["taskset", "-c", str(self.place.cpus[1]), self.place.programs["ringswitch"],
                "run", "--config", file]

    def counter(self, name):
        """The sum of a counter over all lines of the statistics that have it."""
        start = self.console.size()
        self.console.signal(signal.SIGUSR1)
        said = self.console.wait(r"stats end", start=start)
        return sum(map(int, re.findall(rf"\b{name}=(\d+)", said)))


class Guests(generators.FakeGuest):
    """Our own guests: those that are busy, and those that are only there."""

    def start(self):
        place = self.place
        self.console = generators.Console(
            ["taskset", "-c", str(place.cpus[0]), place.programs["generator"],
             *self.backend.sockets, "--huge-pages", "--max-frame", max(place.table.sizes),
             "--pairs", place.pairs, "--addresses", max(1, place.stations // 2)],
            place.directory / "generator.log")


class Case(Pair):
    """A switch and its guests, of one size."""

    def __init__(self, label, setup):
        super().__init__(setup, Switch, Guests)
        self.label = label

    def ask(self, line):
        """One of the generator's commands, and the CPU time that the switch took for it."""
        used, clock = machine.cpu_seconds(self.backend.console.pid), time.monotonic()
        said = self.generator._ask(line)
        used = machine.cpu_seconds(self.backend.console.pid) - used
        return {**said, "cpu": used / (time.monotonic() - clock)}


class Growth:
    """Whether a frame's cost depends on how much there is of something."""

    loads = (64, 1518)
    columns = ("bytes", "", "Mpps", "ns/frame", "to the first", "own cycles", "to the first",
               "guests busy", "quiet")

    def __init__(self, key, title, field, labels):
        self.key, self.title, self.field, self.labels = key, title, field, labels
        self.columns = (self.columns[0], key, *self.columns[2:])

    def case(self, label, directory, programs, tsc_hz):
        """The pair of processes for one row; not started yet."""
        table = Table(self.key, self.title, self.loads)
        return GrowthCase(label, Setup(directory, "alone", machine.cpus(), tsc_hz, table, programs,
                                       **{self.field: label}))

    def cells(self, row, rows):
        """A row of the table."""
        first = next(one for one in rows if one["load"] == row["load"])
        return (str(row["load"]), f"{row['case']:,}", f"{row['pps'] / 1e6:.3f}",
                f"{1e9 / row['pps']:.1f}", f"{first['pps'] / row['pps']:.2f}",
                f"{row['own_cycles']:.0f}", f"{row['own_cycles'] / first['own_cycles']:.2f}",
                f"{row['gen_busy']:.2f}", f"{row['quiet']}/{row['windows']}")


class GrowthCase(Case):
    """As many frames as go round."""

    def prepare(self, load):
        """Puts the frames into the loop, until all stations are learned."""
        self.load(load)
        with self.awake():
            deadline = time.monotonic() + START_PATIENCE
            while self.backend.counter("macs") < self.place.stations:
                if time.monotonic() > deadline:
                    raise host.Problem(f"{self.label} stations are not learned (log: "
                                       f"{self.backend.console.log})")
                time.sleep(0.2)

    def measure(self, _load, secs):
        """A sample."""
        return self.window(secs)


class Rest:
    """What sleeping saves, and what it costs."""

    labels = ("adaptive", "poll")

    def case(self, label, directory, programs, tsc_hz):
        """The pair of processes for one mode; not started yet."""
        table = Table(self.key, self.title, (64, 1518))
        return self.kind(label, Setup(directory, "alone", machine.cpus(), tsc_hz, table, programs,
                                      mode=label))


class LoadCase(Case):
    """Frames at a share of the highest rate, from one guest to the other."""

    highest = {}  # by size, the same for all modes

    def prepare(self, load):
        """Loads the frames, and finds the highest rate when it is needed first."""
        size, share = load
        with self.awake():
            self.generator._ask(f"load {size} 0")
            if load == next(one for one in Load.loads if one[0] == size):
                said = self.generator._ask("offer 0 0.5")
                rate = said["received"] / said["seconds"]
                self.highest[size] = max(rate, self.highest.get(size, 0))

    def measure(self, load, secs):
        """A sample."""
        size, share = load
        rate = 0 if share == 1 else self.highest[size] * share
        with self.awake():
            time.sleep(0.05)
            sleeps = self.backend.counter("sleeps")
            said = self.ask(f"offer {rate:.0f} {secs}")
            sleeps = self.backend.counter("sleeps") - sleeps
        return {**said, "sleeps": sleeps, "pps": said["received"] / said["seconds"],
                "quiet": self.place.mode == "adaptive" or said["cpu"] > 0.93}


class Load(Rest):
    """CPU time and latency at a given load."""

    key, title, kind = "load", "Load, open loop, from one guest to the other", LoadCase
    loads = tuple((size, share) for size in (64, 1518)
                  for share in (0.0001, 0.001, 0.01, 0.1, 0.5, 1))
    columns = ("bytes", "load", "mode", "Mpps", "Gbit/s", "CPU, %", "CPU %/Mpps",
               "CPU %/(Gbit/s)", "p50, us", "p99, us", "sleeps/s", "kicks/s", "lost", "quiet")

    def cells(self, row, _rows):
        """A row of the table."""
        size, share = row["load"]
        mpps, cpu = row["pps"] / 1e6, row["cpu"] * 100
        gbit = mpps * size * 8 / 1000
        return (str(size), f"{share * 100:g}%", row["case"], f"{mpps:.3f}", f"{gbit:.2f}",
                f"{cpu:.0f}", f"{cpu / mpps:.1f}", f"{cpu / gbit:.1f}",
                f"{row['ns_p50'] / 1000:.2f}", f"{row['ns_p99'] / 1000:.2f}",
                f"{row['sleeps'] / row['seconds']:.0f}", f"{row['kicks'] / row['seconds']:.0f}",
                f"{row['lost']:.0f}", f"{row['quiet']}/{row['windows']}")


class GapCase(Case):
    """Single frames."""

    def prepare(self, _load):
        """Loads one frame."""
        with self.awake():
            self.generator._ask("load 64 0")

    def measure(self, load, secs):
        """A sample."""
        with self.awake():
            time.sleep(0.05)
            count = max(20, min(10_000, int(secs * 1e6 / (load + 20))))
            said = self.ask(f"gap {load} {count}")
        return {**said, "quiet": self.place.mode == "adaptive" or said["cpu"] > 0.93}


class Gap(Rest):
    """Latency of a frame that meets a sleeping switch."""

    key, title, kind = "gap", "One frame of 64 bytes after a pause", GapCase
    loads = (0, 100, 1_000, 10_000)
    columns = ("pause, us", "mode", "p50, us", "p99, us", "more than poll, p50, us", "CPU, %",
               "kicks/frame", "quiet")

    def cells(self, row, rows):
        """A row of the table."""
        poll = next(one for one in rows if (one["load"], one["case"]) == (row["load"], "poll"))
        return (f"{row['load']:,}", row["case"], f"{row['ns_p50'] / 1000:.2f}",
                f"{row['ns_p99'] / 1000:.2f}", f"{(row['ns_p50'] - poll['ns_p50']) / 1000:.2f}",
                f"{row['cpu'] * 100:.0f}", f"{row['kicks'] / row['received']:.2f}",
                f"{row['quiet']}/{row['windows']}")


ALL = {question.key: question for question in (
    Growth("ports", "Attached guests, two of them busy", "ports", (2, 16, 64, 256)),
    Growth("macs", "Stations behind the two guests", "stations", (10, 1_000, 100_000)),
    Growth("pairs", "Queue pairs of each guest", "pairs", (1, 2, 4, 8)),
    Load(),
    Gap(),
)}
