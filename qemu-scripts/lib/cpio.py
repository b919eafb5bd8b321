"""Writes a cpio archive in the "newc" format, the one the kernel unpacks as its initramfs.

Format: Linux, Documentation/driver-api/early-userspace/buffer-format.rst. Owned by root throughout
and with zero time stamps, so that the same inputs give the same bytes. It does not touch the file
system.
"""

import stat


class Archive:
    """Collects entries in memory; `finish` returns the archive."""

    def __init__(self):
        self._parts = []
        self._inode = 0
        self._seen = set()

    def _entry(self, name, mode, data=b"", device=(0, 0)):
        self._inode += 1
        encoded = name.encode() + b"\0"
        fields = (self._inode, mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(encoded), 0)
        header = b"070701" + b"".join(b"%08X" % field for field in fields)
        for part in (header + encoded, data):
            self._parts.append(part + b"\0" * (-len(part) % 4))

    def directory(self, path):
        """Adds a directory and those above it; a directory already there is left alone."""
        path = path.strip("/")
        if not path or path in self._seen:
            return
        self.directory(path.rpartition("/")[0])
        self._seen.add(path)
        self._entry(path, stat.S_IFDIR | 0o755)

    def file(self, path, data, mode=0o644):
        """Adds a regular file with its directories; the first of two with one path wins."""
        path = path.strip("/")
        if path in self._seen:
            return
        self.directory(path.rpartition("/")[0])
        self._seen.add(path)
        self._entry(path, stat.S_IFREG | mode, data)

    def character_device(self, path, major, minor):
        """Adds a character device node."""
        path = path.strip("/")
        self.directory(path.rpartition("/")[0])
        self._entry(path, stat.S_IFCHR | 0o600, device=(major, minor))

    def finish(self):
        """Ends the archive and returns it."""
        self._inode = -1
        self._entry("TRAILER!!!", 0)
        return b"".join(self._parts)
