"""The machine's huge pages of 2 MiB, for programs of others that can't do without."""

import contextlib
import pathlib

import host

DIRECTORY = pathlib.Path("/sys/kernel/mm/hugepages/hugepages-2048kB")


@contextlib.contextmanager
def available(wanted):
    """Sees to it that `wanted` huge pages of 2 MiB are free; puts the number back afterwards."""
    number, free = DIRECTORY / "nr_hugepages", DIRECTORY / "free_hugepages"
    before, there = int(number.read_text()), int(free.read_text())
    if there >= wanted:
        yield
        return
    try:
        number.write_text(str(before + wanted - there))
        if int(free.read_text()) < wanted:
            raise host.Problem(f"{wanted} free huge pages of 2 MiB are needed, and the machine's "
                               f"memory gives {free.read_text().strip()}", host.EXIT_MISSING)
        yield
    finally:
        number.write_text(str(before))
