"""The measurements: what is run in a testbed, and how the programs' outputs are read.

A result that must not pass (a lost ping, an iperf3 error) is a Problem, never a number in a table.
"""

import concurrent.futures
import json
import re
import time

import cpu
import host

PINGS = 20
PING_INTERVAL = 0.05
# More than a guest under TCG can send: there it measures datagrams per second. Less than a guest
# under KVM receives: there it measures loss at a steady rate.
UDP_RATE = "500M"
# Fits a packet of 1500 bytes, whether IPv4 or IPv6, with room for an extension header.
UDP_PAYLOAD = 1448
IPERF_GRACE = 20
# By then iperf3 has started in a guest under TCG, and its connection is up to speed.
UNDER_WAY = 0.5

# Feature bits of the network device: virtio 1.2, section 5.1.3, and of the ring: section 6.
FEATURES = {
    "tx checksum": (0,), "rx checksum": (1,), "TSO IPv4, IPv6": (11, 12),
    "large receive IPv4, IPv6": (7, 8), "USO": (56,), "mergeable buffers": (15,),
    "indirect descriptors": (28,), "event index": (29,),
}


def ping(guest, address):
    """Pings an address; returns min, avg, max in milliseconds."""
    # The first one resolves the neighbour's address: it is no measure of a round trip.
    guest.check(f"ping -c 1 -W 5 {address}")
    said = guest.check(f"ping -c {PINGS} -i {PING_INTERVAL} -W 2 {address}")
    counts = re.search(r"(\d+) packets transmitted, (\d+) packets received", said)
    times = re.search(r"min/avg/max = ([\d.]+)/([\d.]+)/([\d.]+) ms", said)
    if not counts or not times:
        raise host.Problem(f"ping {address} in {guest.name} said something unexpected: {said}")
    sent, received = int(counts[1]), int(counts[2])
    if received != sent:
        raise host.Problem(f"{guest.name} lost {sent - received} of {sent} pings to {address}")
    low, average, high = map(float, times.groups())
    return {"min": low, "avg": average, "max": high, "sent": sent, "received": received}


def _report(said, what):
    """The `end` part of iperf3's JSON output."""
    try:
        report = json.loads(said)
    except ValueError as error:
        raise host.Problem(f"{what}: iperf3 wrote no JSON but: {said.strip()[:200]}") from error
    if "error" in report:
        raise host.Problem(f"{what}: iperf3 says: {report['error']}")
    return report["end"]


def _client(address, secs, more=""):
    return f"iperf3 -c {address} -t {secs} -i 0 -J {more}".split()


def _in_guest(guest, command, secs):
    _, said = guest.run(" ".join(command), secs + IPERF_GRACE)
    return _report(said, f"`{' '.join(command)}` in {guest.name}")


def _tcp(end):
    return {"mbit_s": end["sum_received"]["bits_per_second"] / 1e6,
            "retransmits": end["sum_sent"]["retransmits"]}


def tcp(guest, address, secs):
    """TCP from a guest to an address: Mbit/s as received, and retransmitted segments."""
    return _tcp(_in_guest(guest, _client(address, secs), secs))


def tcp_from_host(namespace, address, secs):
    """TCP from the host to a guest's address."""
    command = _client(address, secs)
    said = host.run(*namespace.prefix, *command, timeout=secs + IPERF_GRACE)
    return _tcp(_report(said, f"`{' '.join(command)}` on the host"))


def udp(guest, address, secs):
    """UDP from a guest at UDP_RATE: Mbit/s of payload sent and received, loss in per cent."""
    end = _in_guest(guest, _client(address, secs, f"-u -b {UDP_RATE} -l {UDP_PAYLOAD}"), secs)
    total = end["sum"]
    # The receiver's packet count ends at the last datagram that arrived, so it is not `sent`.
    sent = total["packets"]
    received = end["sum_received"]["packets"] - end["sum_received"]["lost_packets"]
    if received <= 0:
        raise host.Problem(f"no UDP datagram of {guest.name} arrived at {address}")
    scale = UDP_PAYLOAD * 8 / total["seconds"] / 1e6
    return {"sent_mbit_s": sent * scale, "mbit_s": received * scale,
            "loss_percent": 100 * max(0, sent - received) / sent}


def _busy_cpus(secs):
    """How many CPUs of the machine are busy on average while an iperf3 of `secs` seconds is under
    way, the one that is being started now."""
    time.sleep(UNDER_WAY)
    before, clock = cpu.busy_seconds(), time.monotonic()
    time.sleep(secs - UNDER_WAY)
    return (cpu.busy_seconds() - before) / (time.monotonic() - clock)


def _with_cpu(run, *arguments):
    """An iperf3 run with the processor time that it took: `run(*arguments)`, whose last argument is
    its seconds.

    It is the whole machine's: of the guests, of the switch, and of the kernel wherever it works for
    them. Only one testbed runs at a time, and whatever else runs counts too.
    """
    with concurrent.futures.ThreadPoolExecutor(1) as beside:
        busy = beside.submit(_busy_cpus, arguments[-1])
        result = run(*arguments)
    result["cpu_s_per_gbit"] = busy.result() * 1000 / result["mbit_s"]
    return result


def offloads(guest):
    """What the guest's driver negotiated: "on" or "off" for each bit of each of FEATURES."""
    bits = guest.check("cat /sys/class/net/eth0/device/features").strip()
    return {name: ", ".join(["off", "on"][bits[bit] == "1"] for bit in wanted)
            for name, wanted in FEATURES.items()}


def steps(bed, secs):
    """The measurements in a running testbed, by name, in the order to make them."""
    vm1, vm2 = bed.guests
    of = bed.addresses
    return {
        "offloads": lambda: offloads(vm1),
        "ping4": lambda: ping(vm1, of["vm2"][0]),
        "ping6": lambda: ping(vm1, of["vm2"][1]),
        "tcp_vm1_vm2": lambda: _with_cpu(tcp, vm1, of["vm2"][0], secs),
        "tcp_vm2_vm1": lambda: _with_cpu(tcp, vm2, of["vm1"][0], secs),
        "udp_vm1_vm2": lambda: _with_cpu(udp, vm1, of["vm2"][0], secs),
        "udp_vm2_vm1": lambda: _with_cpu(udp, vm2, of["vm1"][0], secs),
        "tcp_vm1_host": lambda: _with_cpu(tcp, vm1, of["host"][0], secs),
        "tcp_host_vm1": lambda: _with_cpu(tcp_from_host, bed.namespace, of["vm1"][0], secs),
    }
