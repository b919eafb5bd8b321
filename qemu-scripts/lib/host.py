"""The host's side of things: Debian packages, child processes, where files are kept.

Everything here reports a problem as `Problem`: one sentence for the person at the terminal and the
exit code that goes with it. Nothing here knows about guests or switches.
"""

import ctypes
import os
import pathlib
import shutil
import signal
import subprocess
import sys

SCRIPTS = pathlib.Path(__file__).resolve().parent.parent
REPOSITORY = SCRIPTS.parent

PR_SET_PDEATHSIG = 1

EXIT_FAILED = 1
EXIT_MISSING = 2

# The Debian 12 package of each program that may be missing.
PACKAGE_OF = {
    "qemu-system-x86_64": "qemu-system-x86",
    "busybox": "busybox-static",
    "iperf3": "iperf3",
    "ethtool": "ethtool",
    "tcpdump": "tcpdump",
    "kexec": "kexec-tools",
    "ip": "iproute2",
    "cc": "build-essential",
    "valgrind": "valgrind",
    "dpdk-testpmd": "dpdk-dev",
    "ovs-vsctl": "openvswitch-switch",
    "ovsdb-server": "openvswitch-switch",
    "/usr/lib/openvswitch-switch-dpdk/ovs-vswitchd-dpdk": "openvswitch-switch-dpdk",
}


class Problem(Exception):
    """Something that ends the program: a sentence to print, and its exit code."""

    def __init__(self, sentence, code=EXIT_FAILED):
        super().__init__(sentence)
        self.code = code


_ERASE_LINE = "\r\033[K"
_children = []


def say(text):
    """A line that stays. It goes to stderr: stdout belongs to results."""
    erase = _ERASE_LINE if sys.stderr.isatty() else ""
    print(f"{erase}{text}", file=sys.stderr, flush=True)


def progress(text):
    """What is being done now: on a terminal the next line takes its place."""
    if sys.stderr.isatty():
        room = shutil.get_terminal_size().columns - 1
        print(f"{_ERASE_LINE}{text[:room]}", end="", file=sys.stderr, flush=True)
    else:
        say(text)


def cache():
    """The directory for what can be made again: RINGSWITCH_CACHE, or .cache beside the scripts."""
    path = pathlib.Path(os.environ.get("RINGSWITCH_CACHE") or SCRIPTS / ".cache").resolve()
    path.mkdir(parents=True, exist_ok=True)
    return path


def extend_path():
    """Puts the sbin directories on PATH: a root shell made by `su` lacks them."""
    known = os.environ.get("PATH", "").split(":")
    wanted = [d for d in ("/usr/local/sbin", "/usr/sbin", "/sbin") if d not in known]
    os.environ["PATH"] = ":".join(known + wanted)


def find(program):
    """The path of an installed program, or a Problem that names the package it is in."""
    path = shutil.which(program)
    if path is None:
        raise Problem(f"{program} is not installed; it is in Debian's package "
                      f"{PACKAGE_OF.get(program, program)}", EXIT_MISSING)
    return path


def run(*argv, **options):
    """Runs a command to its end and returns its stdout; a failure is a Problem with its stderr."""
    argv = [str(arg) for arg in argv]
    try:
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True,
                              errors="replace", start_new_session=True, **options)
    except FileNotFoundError:
        find(argv[0])
        raise
    except subprocess.TimeoutExpired as late:
        raise Problem(f"`{' '.join(argv)}` did not end within {late.timeout} s") from late
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip() or "it said nothing"
        raise Problem(f"`{' '.join(argv)}` failed with exit code {done.returncode}: {said}")
    return done.stdout


def _die_with_parent():
    """Runs in a child before exec: when its parent is gone, however, the kernel ends the child."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def spawn(argv, log, stdin=subprocess.DEVNULL, env=None):
    """Starts a child that lives no longer than we do, its output in the file `log`.

    It gets a session of its own: Ctrl-C on the terminal reaches only us, and we end it in order.
    """
    argv = [str(arg) for arg in argv]
    with open(log, "ab") as out:
        child = subprocess.Popen(argv, stdin=stdin, stdout=out, stderr=out, env=env,
                                 start_new_session=True, preexec_fn=_die_with_parent)
    _children.append(child)
    return child


def end_children():
    """Kills what is left of all spawned children; a last resort after an interrupted clean-up."""
    for child in _children:
        end(child, first=signal.SIGKILL)


def end(child, patience=5.0, first=signal.SIGTERM):
    """Ends a child: asks by signal `first`, insists with SIGKILL. Returns its exit code."""
    if child.poll() is None:
        child.send_signal(first)
        try:
            child.wait(patience)
        except subprocess.TimeoutExpired:
            child.kill()
    return child.wait()


def need(programs):
    """Installs the packages of missing programs when root; otherwise a Problem names them."""
    missing = sorted({PACKAGE_OF[p] for p in programs if shutil.which(p) is None})
    if not missing:
        return
    command = ["apt-get", "install", "-y", "--no-install-recommends", *missing]
    if shutil.which("apt-get") is None or os.geteuid() != 0:
        raise Problem(f"these Debian packages are missing: {' '.join(missing)}; as root: "
                      f"{' '.join(command)}", EXIT_MISSING)
    say(f"installing {' '.join(missing)}")
    environment = dict(os.environ, DEBIAN_FRONTEND="noninteractive")
    try:
        run(*command, env=environment)
    except Problem:
        run("apt-get", "update", env=environment)
        run(*command, env=environment)
    for program in programs:
        find(program)


def main(function):
    """Runs a script's main function: a Problem becomes one sentence and an exit code."""
    extend_path()
    try:
        sys.exit(function())
    except Problem as problem:
        say(f"{pathlib.Path(sys.argv[0]).name}: {problem}")
        sys.exit(problem.code)
