//! How the bytes of a buffer are cut into descriptors.

/// Bytes left unused between two pieces, so that a device that reads or writes past the end of a
/// descriptor meets bytes that belong to nothing.
pub const GAP: u64 = 32;

/// One contiguous piece of a buffer in guest memory: one descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Guest-physical address.
    pub addr: u64,
    /// Length in bytes.
    pub len: u32,
}

/// A chosen way to cut a buffer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Layout {
    /// Lengths in bytes of the first pieces, the virtio-net header included; what is left goes
    /// into a last one. Pieces past the end of the buffer are left out.
    pub splits: Vec<usize>,
    /// The chain lives in an indirect table (virtio 1.2, section 2.7.5.3).
    pub indirect: bool,
}

impl Layout {
    /// One descriptor for header and frame.
    pub fn whole() -> Layout {
        Layout::default()
    }

    /// The header in a descriptor of its own, as Linux sends when the frame has no headroom.
    pub fn header_apart() -> Layout {
        Layout::split(&[12])
    }

    /// Pieces of the given lengths, and the rest.
    pub fn split(splits: &[usize]) -> Layout {
        Layout { splits: splits.to_vec(), indirect: false }
    }

    /// The same pieces in an indirect table.
    pub fn in_indirect_table(self) -> Layout {
        Layout { indirect: true, ..self }
    }

    /// Cuts `total` bytes into pieces laid out from `addr` on, [`GAP`] bytes between them.
    pub fn pieces(&self, addr: u64, total: usize) -> Vec<Piece> {
        let mut pieces = Vec::with_capacity(self.splits.len() + 1);
        let (mut addr, mut left) = (addr, total);
        for split in self.splits.iter().copied().chain([total]) {
            if left == 0 {
                break;
            }
            let len = split.min(left);
            pieces.push(Piece { addr, len: u32::try_from(len).expect("a buffer below 4 GiB") });
            addr += len as u64 + GAP;
            left -= len;
        }
        pieces
    }

    /// Memory that a buffer of `total` bytes takes with its gaps.
    pub fn footprint(&self, total: usize) -> u64 {
        total as u64 + GAP * (self.splits.len() as u64 + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_cover_the_buffer_and_leave_gaps() {
        let pieces = Layout::split(&[12, 0, 30]).pieces(1000, 100);
        let expected = [(1000, 12), (1044, 0), (1076, 30), (1138, 58)];
        assert_eq!(pieces, expected.map(|(addr, len)| Piece { addr, len }));
        let short = Layout::split(&[12, 30, 60]).pieces(0, 20);
        assert_eq!(short.iter().map(|piece| piece.len).collect::<Vec<_>>(), [12, 8]);
    }
}
