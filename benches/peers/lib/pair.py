"""A pair: one backend and the two guests on it. All pairs of a table are started once and kept
stopped; each is woken for a short window in turn, so that the samples of one round are seconds
apart and their ratio holds on a machine whose speed drifts.
"""

import contextlib
import dataclasses
import pathlib
import signal
import time

import host
import machine
from generators import Unsupported

WARM_UP = 0.1
# The least share of a CPU that both processes must have had for a window to count as quiet.
QUIET_SHARE = 0.93
TRIES = 3
QUIET_PATIENCE = 30


@dataclasses.dataclass(frozen=True)
class Place:
    """Where and with what a pair runs."""

    directory: pathlib.Path
    prefix: str  # for DPDK's names
    cpus: tuple  # the guests', the switch's
    tsc_hz: float
    table: object
    programs: dict  # paths of this repository's programs


class Pair:
    """One backend with its guests."""

    def __init__(self, place, backend, generator):
        self.place = place
        self.name = backend.name
        self.backend = backend(place)
        self.generator = generator(place, self.backend)

    def start(self):
        """Starts both and leaves them stopped."""
        self.place.directory.mkdir()
        if self.backend.listens:
            self.backend.start()
            self.generator.start()
        else:
            self.generator.start()
            self.backend.start()
        self.backend.connected()
        self.generator.connect()
        self._stop()

    def _each(self):
        return [part.console for part in (self.backend, self.generator) if part.console]

    def _stop(self):
        for console in self._each():
            console.signal(signal.SIGSTOP)

    @contextlib.contextmanager
    def awake(self):
        """Lets both run within the `with` block."""
        for console in self._each():
            console.check()
            console.signal(signal.SIGCONT)
        try:
            yield
        finally:
            self._stop()

    def load(self, size):
        """Changes the frames in the loop."""
        with self.awake():
            self.generator.load(size)

    def _window(self, secs):
        with self.awake():
            time.sleep(WARM_UP)
            pids = [console.pid for console in self._each()]
            own = self.backend.own()
            clock, used = time.monotonic(), [machine.cpu_seconds(pid) for pid in pids]
            sample = self.generator.window(secs)
            clock = time.monotonic() - clock
            shares = [(machine.cpu_seconds(pid) - before) / clock
                      for pid, before in zip(pids, used)]
            if own:
                frames, cycles = (after - before for before, after in zip(own, self.backend.own()))
                sample["own_cycles"] = cycles / frames if frames else None
        sample.update(cpu_switch=shares[0], cpu_guests=shares[1], quiet=min(shares) > QUIET_SHARE,
                      flying=self.generator.flying)
        if not sample["pps"]:
            raise host.Problem(f"no frame passes {self.name} any more (logs: "
                               f"{self.place.directory})")
        return sample

    def window(self, secs):
        """Measures for `secs` seconds, again if somebody else ran meanwhile."""
        for _ in range(TRIES):
            sample = self._window(secs)
            if sample["quiet"]:
                break
            machine.wait_quiet(QUIET_PATIENCE)
        return sample

    def end(self):
        """Ends both."""
        self.generator.end()
        self.backend.end()


def start_all(pairs):
    """Starts pairs; returns those that can carry the table, and says why others can't."""
    able = []
    for pair in pairs:
        host.progress(f"{pair.place.table.key}: starting {pair.name}")
        try:
            pair.start()
            able.append(pair)
        except Unsupported as reason:
            host.say(f"left out of `{pair.place.table.key}`: {reason}")
            pair.end()
    return able
