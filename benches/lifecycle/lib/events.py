"""What happens to a guest or its switch while a stream runs: one function for each event.

The stream is between vm1 and vm2, and vm2 watches: what happens to a guest happens to vm1, since the
clock of a guest that stands still tells nothing. A function gets the testbed (`lib/beds.py`), makes
its event happen, and returns when nothing more is to be done about it; what the stream then needs to
recover is measured. It may return `{"away": seconds}`: for how long there was nobody to switch
frames, which is told apart from the time to recover.

Another event is another function with `@event`.
"""

import dataclasses
import re
import signal
import time
from collections.abc import Callable

import host

# For what is stopped, and for a link that is down: seconds.
PAUSE = 0.5
BOOT_PATIENCE = 60
MEMORY_MIB = 128


@dataclasses.dataclass(frozen=True)
class Event:
    """Something that happens."""

    key: str
    label: str  # for the table
    run: Callable | None  # None: it needs other networks than the testbeds
    tcp: bool  # a TCP stream of vm1 survives it
    peers: bool  # it is measured with other switches too


ALL = {}


def event(label, tcp=True, peers=False):
    """Adds a function to the events."""
    def add(function):
        key = function.__name__
        ALL[key] = Event(key, label, function, tcp, peers)
        return function
    return add


@event("nothing", peers=True)
def nothing(_bed):
    """What the stream is like when nothing happens."""
    time.sleep(PAUSE)


@event("switch restarted, SIGTERM", peers=True)
def restart_sigterm(bed):
    """An orderly restart."""
    return {"away": bed.restart_switch(signal.SIGTERM)}


@event("switch killed, SIGKILL", peers=True)
def restart_sigkill(bed):
    """A crash, and whoever supervises the switch starts it again at once."""
    return {"away": bed.restart_switch(signal.SIGKILL)}


@event("switch upgraded")
def upgrade(bed):
    """Another process takes over."""
    return {"away": bed.upgrade()}


@event(f"stop, cont after {PAUSE} s")
def stop_cont(bed):
    """The VM is paused."""
    start = time.monotonic()
    bed.qmp(1).run("stop")
    time.sleep(PAUSE)
    bed.qmp(1).run("cont")
    return {"away": time.monotonic() - start}


@event(f"link down, up after {PAUSE} s")
def link_down_up(bed):
    """QEMU's set_link, as of a cable that is pulled."""
    start = time.monotonic()
    bed.qmp(1).run("set_link", name="net0", up=False)
    time.sleep(PAUSE)
    bed.qmp(1).run("set_link", name="net0", up=True)
    return {"away": time.monotonic() - start}


@event("driver unbound and bound", tcp=False)
def unbind_bind(bed):
    """The guest's driver lets its device go and takes it again; the address is set anew."""
    guest, (ip4, _) = bed.guests[0], bed.addresses["vm1"]
    said = guest.check("basename $(readlink /sys/class/net/eth0/device)").strip()
    driver = "/sys/bus/virtio/drivers/virtio_net"
    guest.check(f"echo {said} >{driver}/unbind; echo {said} >{driver}/bind; "
                f"ip link set eth0 up && ip addr add {ip4}/24 dev eth0")


@event("MTU changed, in the guest")
def mtu_change(bed):
    """Linux changes the MTU of a running device without a word to anybody."""
    for mtu in (1400, 1500):
        bed.guests[0].check(f"ip link set eth0 mtu {mtu}")


@event("memory plugged in")
def memory_hotplug(bed):
    """A DIMM more for the guest, which puts it into use. They stay: a few rounds have room."""
    commands, guest = bed.qmp(1), bed.guests[0]
    blocks = guest.check("ls -d /sys/devices/system/memory/memory* | wc -l")
    number = len(commands.run("query-memory-devices"))
    commands.run("object-add", qom_type="memory-backend-memfd", id=f"more{number}", share=True,
                 size=MEMORY_MIB << 20)
    commands.run("device_add", driver="pc-dimm", id=f"dimm{number}", memdev=f"more{number}")
    wait = (f"while [ $(ls -d /sys/devices/system/memory/memory* | wc -l) -le {int(blocks)} ]; "
            "do sleep 0.02; done")
    online = ("for block in /sys/devices/system/memory/memory*; do "
              "[ $(cat $block/state) = online ] || echo online >$block/state; done")
    guest.check(f"{wait}; {online}")


@event("guest rebooted", tcp=False)
def reboot(bed):
    """The guest resets its machine and boots again. The interface goes down first, as with any
    orderly end: Linux 6.1 can hang when it resets a device that it is just sending on."""
    guest = bed.guests[0]
    guest.run("(sleep 0.1; ip link set eth0 down; reboot -f) >/dev/null 2>&1 &")
    guest.wait_ready(BOOT_PATIENCE)


# To a switch on another host: `qemu-scripts/migrate` in numbers.
ALL["migration"] = Event("migration", "guest migrated to another host", None, tcp=False, peers=False)


def chosen(text):
    """The events of a list with commas, as argparse wants it."""
    keys = [key for key in re.split(r"[,\s]+", text) if key]
    for key in keys:
        if key not in ALL:
            raise host.Problem(f"no event {key}: there are {', '.join(ALL)}", host.EXIT_MISSING)
    return [ALL[key] for key in keys]
