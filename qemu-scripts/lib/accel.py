"""Which accelerator QEMU is to use: KVM where it truly runs the guest's kernel, TCG elsewhere.

The presence of /dev/kvm proves little: under some hypervisors it opens, and an ordinary kernel
never gets anywhere. So the guest is booted once with KVM, with a time limit; the outcome is kept in
the cache until the host's next boot. RINGSWITCH_ACCEL=kvm or =tcg decides without a probe.
"""

import os
import pathlib
import tempfile

import host
import image
import qemu
from control import Control

PROBE_SECONDS = 10

_chosen = None


def choose():
    """Returns "kvm" or "tcg", as found once per boot of the host."""
    global _chosen
    if _chosen is None:
        asked = os.environ.get("RINGSWITCH_ACCEL")
        if asked and asked not in qemu.ACCELERATOR:
            raise host.Problem(f"RINGSWITCH_ACCEL={asked}: kvm or tcg is expected",
                               host.EXIT_MISSING)
        _chosen = asked or ("kvm" if _kvm_works() else "tcg")
    return _chosen


def _kvm_works():
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return False
    made = image.make()
    boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    # Root and another user may get different answers, hence the user in the name.
    known = host.cache() / f"kvm-{boot}-{made.version}-{os.geteuid()}"
    if not known.exists():
        host.say(f"trying KVM (at most {PROBE_SECONDS} s)")
        works = _boots(made)
        host.say("KVM works" if works else "KVM does not run this kernel: guests run under TCG")
        known.write_text("yes" if works else "no", encoding="ascii")
    return known.read_text(encoding="ascii") == "yes"


def _boots(made):
    """Boots a guest without NIC under KVM and waits for it to answer."""
    with tempfile.TemporaryDirectory(prefix="ringswitch-kvm-") as directory:
        path = pathlib.Path(directory, "control")
        settings = qemu.Settings(name="kvm-probe")
        serials = ("null", f"unix:{path},server=on,wait=off")
        argv = qemu.command_line(settings, made, "kvm", serials)
        process = host.spawn(argv, pathlib.Path(directory, "log"))
        control = Control(path, alive=lambda: process.poll() is None)
        try:
            control.wait_ready(PROBE_SECONDS)
            return True
        except host.Problem:
            return False
        finally:
            control.close()
            host.end(process)
