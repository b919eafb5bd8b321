"""Network namespaces of our own: the host's addresses, bridges and TAP devices stay untouched."""

import os
import re

import host

PREFIX = f"ringswitch-{os.getpid()}-"


class Namespace:
    """A network namespace that exists as long as the `with` block."""

    def __init__(self, purpose):
        self.name = PREFIX + purpose

    def __enter__(self):
        host.run("ip", "netns", "add", self.name)
        self.ip("link", "set", "lo", "up")
        return self

    def __exit__(self, *_):
        host.run("ip", "netns", "del", self.name)

    @property
    def prefix(self):
        """The words that make a command run inside."""
        return ["ip", "netns", "exec", self.name]

    def ip(self, *arguments):
        """Runs `ip` on the namespace."""
        return host.run("ip", "-n", self.name, *arguments)


def remove_leftovers():
    """Removes the namespaces that this process, or an earlier one that was killed, has left."""
    for line in host.run("ip", "netns", "list").splitlines():
        name = line.split()[0]
        owner = re.fullmatch(r"ringswitch-(\d+)-\w+", name)
        if owner and (int(owner[1]) == os.getpid() or not os.path.exists(f"/proc/{owner[1]}")):
            host.run("ip", "netns", "del", name)
