"""The QEMU command line of a guest.

Only words are put together here: nothing is started, no file is made.
"""

import dataclasses

import host

QEMU = "qemu-system-x86_64"
# The most memory of a guest with slots for more, MiB: room in its address space, not memory.
MAX_MEMORY = 8192
ACCELERATOR = {"kvm": ["-accel", "kvm", "-cpu", "host"], "tcg": ["-accel", "tcg,thread=multi"]}
KERNEL_PARAMETERS = ("console=ttyS0 quiet loglevel=3 panic=-1 tsc=reliable no_timer_check "
                     "random.trust_cpu=on mitigations=off nokaslr audit=0")


@dataclasses.dataclass
class Settings:
    """What a guest is to be.

    Its NIC is attached to one of: `socket` (a vhost-user socket), `tap` (the name of a TAP device
    that exists, served by QEMU's own virtio device). Without either it has no NIC.
    """

    name: str
    socket: str | None = None
    # The role of QEMU on the socket, in libvirt's words: "client" connects, "server" listens.
    vhost_mode: str = "client"
    tap: str | None = None
    mac: str = "52:54:00:00:00:01"
    ip4: str | None = None  # address/prefix
    ip6: str | None = None  # address/prefix
    mtu: int = 1500
    queues: int = 1  # queue pairs
    memory: int = 256  # MiB
    cpus: int | None = None  # as many as queue pairs, unless told
    device: str = ""  # further options of virtio-net-pci: "csum=off,guest_tso4=off"
    slots: int = 0  # for memory that is plugged in later
    qmp: str | None = None  # a socket for QEMU's commands
    incoming: str | None = None  # it boots nothing and waits for a migration ("unix:PATH")


def _network(settings, accelerator):
    """The arguments for the guest's NIC."""
    queues = settings.queues
    if settings.socket:
        role = "server=on" if settings.vhost_mode == "server" else "reconnect=1"
        backend = ["-chardev", f"socket,id=vhost0,path={settings.socket},{role}",
                   "-netdev", f"vhost-user,id=net0,chardev=vhost0,queues={queues}"]
    elif settings.tap:
        backend = ["-netdev", f"tap,id=net0,ifname={settings.tap},script=no,downscript=no,vhost=off"
                   + (f",queues={queues}" if queues > 1 else "")]
    else:
        return []
    device = f"virtio-net-pci,netdev=net0,mac={settings.mac},romfile="
    if queues > 1:
        device += ",mq=on"
    if settings.socket and accelerator == "tcg":
        # QEMU 7.2 under TCG crashes when it routes MSI-X to a vhost-user device; INTx works. A NIC
        # on a TAP device keeps MSI-X: a baseline is not to be slower than it need be (measured:
        # equal throughput, a third less ping time).
        device += ",vectors=0"
    elif queues > 1:
        # One for each ring, one for the control queue, one for configuration changes.
        device += f",vectors={2 * queues + 2}"
    if settings.device:
        device += f",{settings.device}"
    return [*backend, "-device", device]


def _smp(settings, accelerator):
    """The value of -smp."""
    cpus = settings.cpus or settings.queues
    if accelerator != "tcg":
        return str(cpus)
    # Where there can be one vCPU only, TCG makes plain loads and stores of locked instructions. Linux
    # has no other barrier between "I want an interrupt" and its last look at a ring, and a virtio
    # device runs in another thread: about once in a hundred runs of iperf3 a ring stood still for
    # good, whatever the backend. A second vCPU that might be plugged in gives the barrier back.
    return f"{cpus},maxcpus={max(cpus, 2)}"


def _memory(settings):
    """The value of -m."""
    slots = f",slots={settings.slots},maxmem={MAX_MEMORY}M" if settings.slots else ""
    return f"{settings.memory}M{slots}"


def command_line(settings, made, accelerator, serials):
    """QEMU's arguments for a guest.

    `made` is the Image, `serials` the two -serial arguments: console and control channel.
    """
    parameters = {"guest_name": settings.name, "guest_ip4": settings.ip4, "guest_ip6": settings.ip6,
                  "guest_mtu": settings.mtu, "guest_queues": settings.queues}
    append = " ".join([KERNEL_PARAMETERS, *(f"{k}={v}" for k, v in parameters.items() if v)])
    return [
        host.find(QEMU), "-nodefaults", "-no-user-config", "-display", "none",
        "-name", settings.name,
        *ACCELERATOR[accelerator],
        # vhost-user maps the guest's memory into the switch: it must be a file, and shared.
        "-machine", "q35,memory-backend=mem",
        "-object", f"memory-backend-memfd,id=mem,size={settings.memory}M,share=on",
        "-m", _memory(settings), "-smp", _smp(settings, accelerator),
        "-kernel", str(made.kernel), "-initrd", str(made.initramfs), "-append", append,
        "-serial", serials[0], "-serial", serials[1],
        *(["-qmp", f"unix:{settings.qmp},server=on,wait=off"] if settings.qmp else []),
        *_network(settings, accelerator),
        *(["-incoming", settings.incoming] if settings.incoming else []),
    ]
