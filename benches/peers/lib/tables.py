"""What is measured: frame sizes, guests' features and load of each table."""

import dataclasses

# The longest TCP segment that Linux sends at an MTU of 1500: 44 segments of 1460 bytes, 54 bytes of
# headers.
TSO_FRAME = 44 * 1460 + 54


@dataclasses.dataclass(frozen=True)
class Table:
    """A load. Sizes are bytes of a frame in memory: no FCS, no virtio-net header."""

    key: str
    title: str
    sizes: tuple
    inflight: int = 256  # frames in each direction at most
    ring: int = 1024
    mtu: int = 9000
    packed: bool = False
    mergeable: bool = True
    in_order: bool = False
    vectorised: bool = False  # the vector paths of DPDK's driver
    tso: bool = False  # testpmd can't generate such frames: always the fake guest

    @property
    def devargs(self):
        """The features for DPDK's virtio_user, whose own defaults are not Linux's."""
        return (f"packed_vq={int(self.packed)},mrg_rxbuf={int(self.mergeable)},"
                f"in_order={int(self.in_order)},vectorized={int(self.vectorised)}")

    def conditions(self):
        """The features and the load in words."""
        words = ["packed rings" if self.packed else "split rings", f"{self.ring} entries",
                 "mergeable buffers" if self.mergeable else "no mergeable buffers"]
        words += ["in order"] if self.in_order else []
        words += ["vectorised driver"] if self.vectorised else []
        return ", ".join(words)


SIZES = (64, 512, 1518, 9000)
# Without mergeable buffers a frame must fit in one.
SHORT = SIZES[:3]

ALL = {table.key: table for table in (
    Table("split", "Split rings, as Linux", SIZES),
    Table("packed", "Packed rings", SIZES, packed=True),
    Table("short-rings", "Split rings of 256, whose buffers fit the second-level cache", (512, 1518),
          ring=256, inflight=128),
    Table("in-order", "Split rings, in order", SHORT, in_order=True),
    Table("vectorised", "Split rings, vectorised driver without mergeable buffers", SHORT,
          mergeable=False, vectorised=True),
    Table("latency", "One frame at a time in each direction", (64,), inflight=1),
    Table("tso", "TSO frames", (TSO_FRAME,), mtu=1500, tso=True),
)}
