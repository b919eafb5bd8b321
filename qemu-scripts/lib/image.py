"""Makes the guest: Debian's cloud kernel and an initramfs of busybox and a few network tools.

Nothing is installed on the host: the kernel's package is downloaded (apt checks its signature) and
unpacked in the cache directory. The initramfs is left uncompressed: QEMU loads it in a moment,
while a guest under TCG takes up to half a second to decompress it.
"""

import fcntl
import hashlib
import os
import pathlib
import re
import shutil
import tempfile

import cpio
import host

PROGRAMS = ("busybox", "iperf3", "ethtool", "tcpdump", "kexec")
META_PACKAGE = "linux-image-cloud-amd64"
# What init loads, and what the kernel may ask for when a test sets up a VLAN.
MODULES = ("virtio_pci", "virtio_net", "8021q")
PASSWD = b"root:x:0:0:root:/root:/bin/sh\n"


class Image:
    """The two files a guest boots from, and the kernel's version."""

    def __init__(self, kernel, initramfs, version):
        self.kernel, self.initramfs, self.version = kernel, initramfs, version


def _kernel_tree(cache):
    """Where the kernel's package is unpacked; None when it isn't there yet."""
    trees = sorted((cache / "kernel").glob("*/boot/vmlinuz-*"))
    return trees[-1].parent.parent if trees else None


def _kernel_package():
    """The package of the kernel itself, the one the metapackage depends on."""
    def look_up():
        said = host.run("apt-cache", "depends", META_PACKAGE)
        return re.search(r"Depends:\s*(linux-image-\S+-cloud-amd64)", said)
    try:
        found = look_up()
    except host.Problem:
        found = None
    if not found and os.geteuid() == 0:
        host.run("apt-get", "update")
        found = look_up()
    if not found:
        raise host.Problem(f"apt does not know {META_PACKAGE}: this needs Debian's package lists "
                           "(as root: apt-get update)", host.EXIT_MISSING)
    return found[1]


def _fetch_kernel(cache):
    """Downloads and unpacks the kernel; when interrupted, nothing looks whole that isn't."""
    package = _kernel_package()
    host.say(f"downloading {package}")
    with tempfile.TemporaryDirectory(dir=cache) as scratch:
        try:
            host.run("apt-get", "download", package, cwd=scratch)
        except host.Problem:
            # Package lists that are some weeks old name a version the mirror has since dropped.
            if os.geteuid() != 0:
                raise
            host.run("apt-get", "update")
            package = _kernel_package()
            host.run("apt-get", "download", package, cwd=scratch)
        archive = next(pathlib.Path(scratch).glob("*.deb"))
        tree = pathlib.Path(scratch, "tree")
        host.run("dpkg-deb", "-x", archive, tree)
        (cache / "kernel").mkdir(exist_ok=True)
        target = cache / "kernel" / package
        shutil.rmtree(target, ignore_errors=True)
        tree.rename(target)
    return target


def _libraries(program):
    """The shared libraries of a program and their loader; none if it is static."""
    try:
        listed = host.run("ldd", program)
    except host.Problem:
        return []
    return re.findall(r"(?:=> |^\s+)(/\S+) \(0x", listed, re.MULTILINE)


def _dependencies(module):
    """The names of the modules that a module file says it needs (its .modinfo section)."""
    found = re.search(rb"\0depends=([^\0]*)\0", module.read_bytes())
    return [name for name in found[1].decode().split(",") if name] if found else []


def _add_modules(archive, tree, version):
    """Adds the modules and what they need, with the modules.dep that busybox modprobe reads."""
    files = {path.stem.replace("-", "_"): path for path in (tree / "lib/modules").rglob("*.ko*")}
    lines, waiting, done = [], list(MODULES), set()
    while waiting:
        name = waiting.pop().replace("-", "_")
        if name in done:
            continue
        if name not in files:
            raise host.Problem(f"kernel {version} has no module {name}")
        done.add(name)
        needed = _dependencies(files[name])
        waiting += needed
        archive.file(f"lib/modules/{version}/{files[name].name}", files[name].read_bytes())
        needed_files = (files[n.replace("-", "_")].name for n in _closure(needed, files))
        lines.append(f"{files[name].name}: {' '.join(needed_files)}\n")
    archive.file(f"lib/modules/{version}/modules.dep", "".join(lines).encode())


def _closure(names, files):
    """Modules and all they need, each after those that need it, as modules.dep wants it."""
    ordered = []
    for name in names:
        for each in [name, *_closure(_dependencies(files[name.replace("-", "_")]), files)]:
            if each in ordered:
                ordered.remove(each)
            ordered.append(each)
    return ordered


def _initramfs(tree, version):
    """The initramfs as bytes."""
    archive = cpio.Archive()
    for directory in ("bin", "dev", "proc", "sys", "run", "tmp", "etc", "root"):
        archive.directory(directory)
    # The kernel opens it for init before anything is mounted.
    archive.character_device("dev/console", 5, 1)
    archive.file("init", (host.SCRIPTS / "guest-init").read_bytes(), 0o755)
    archive.file("etc/passwd", PASSWD)
    for program in PROGRAMS:
        path = host.find(program)
        archive.file(f"bin/{program}", pathlib.Path(path).read_bytes(), 0o755)
        for library in _libraries(path):
            archive.file(library, pathlib.Path(library).read_bytes(), 0o755)
    _add_modules(archive, tree, version)
    return archive.finish()


def _inputs(tree):
    """A digest of all that the initramfs is made from, cheap enough for every start."""
    digest = hashlib.sha256(tree.name.encode())
    for source in ("guest-init", "lib/image.py", "lib/cpio.py"):
        digest.update((host.SCRIPTS / source).read_bytes())
    for program in PROGRAMS:
        path = host.find(program)
        for file in [path, *_libraries(path)]:
            about = os.stat(file)
            digest.update(f"{file} {about.st_size} {about.st_mtime_ns}".encode())
    return digest.hexdigest()


def _make_initramfs(cache, tree, version):
    """The path of an initramfs that matches its inputs, made now if there is none yet."""
    # The digest is part of the name: guests that boot while a new one is made keep theirs.
    initramfs = cache / f"initramfs-{_inputs(tree)[:16]}.cpio"
    if not initramfs.exists():
        host.say("making the guest's initramfs")
        for old in cache.glob("initramfs-*"):
            old.unlink()
        unfinished = initramfs.with_suffix(".unfinished")
        unfinished.write_bytes(_initramfs(tree, version))
        unfinished.rename(initramfs)
    return initramfs


def make(update=False):
    """Makes what is missing or out of date and returns the Image. `update` asks for a new kernel.

    One process at a time: several tests may want their first guest at once.
    """
    host.need(PROGRAMS)
    cache = host.cache()
    with open(cache / "lock", "w", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        tree = None if update else _kernel_tree(cache)
        tree = tree or _fetch_kernel(cache)
        kernel = next((tree / "boot").glob("vmlinuz-*"))
        version = kernel.name.removeprefix("vmlinuz-")
        return Image(kernel, _make_initramfs(cache, tree, version), version)
