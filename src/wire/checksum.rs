//! The internet checksum (RFC 1071), taken over a frame in pieces.
//!
//! Owns the arithmetic only: which bytes are summed and where the result goes is decided in
//! [`gso`](super::gso).
//!
//! # Theory of operation
//!
//! A ones-complement sum of 16-bit words may be taken over wider words and folded at the end, and
//! in either byte order, as long as the result is swapped back (RFC 1071, section 2). So pieces are
//! summed as little-endian 32-bit words in 64-bit lanes, which compilers turn into vector code, and
//! [`Sum::finish`] swaps once. A piece that starts at an odd offset of the whole has its bytes in
//! the other halves of the words: its folded sum is swapped before it is added.

/// A running checksum.
///
/// Pieces are added in order, each of any length; [`Sum`] remembers whether the next one starts at
/// an odd offset.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sum {
    /// The sum of little-endian words, not folded. Each piece adds less than 2^16, so that it takes
    /// 2^48 pieces to overflow.
    words: u64,
    /// Whether an odd number of bytes was added.
    odd: bool,
}

impl Sum {
    /// Adds the bytes that follow those added so far.
    #[inline]
    pub fn add(&mut self, bytes: &[u8]) {
        self.add_folded(sum_words(bytes), self.odd);
        self.odd ^= bytes.len() & 1 != 0;
    }

    /// Adds a sum that was taken on its own over bytes that lie further on in the whole.
    ///
    /// The next piece is taken to follow these bytes.
    #[inline]
    pub fn combine(&mut self, other: Sum, other_starts_at_odd_offset: bool) {
        self.add_folded(fold(other.words), other_starts_at_odd_offset);
        self.odd = other.odd ^ other_starts_at_odd_offset;
    }

    /// The sum so far, not complemented: what a checksum field holds under NEEDS_CSUM, when the sum
    /// was taken over the pseudo header. To be written with `to_be_bytes`.
    #[inline]
    pub fn partial(self) -> u16 {
        fold(self.words).swap_bytes()
    }

    /// The checksum: the complemented sum, to be written with `to_be_bytes`.
    #[inline]
    pub fn finish(self) -> u16 {
        !self.partial()
    }

    #[inline]
    fn add_folded(&mut self, sum: u16, swapped: bool) {
        let sum = if swapped { sum.swap_bytes() } else { sum };
        self.words = self.words.wrapping_add(u64::from(sum));
    }
}

/// The folded sum of the little-endian 16-bit words of `bytes`; an odd last byte counts as followed
/// by zero.
fn sum_words(bytes: &[u8]) -> u16 {
    const LANES: usize = 16;
    const WORD: usize = size_of::<u32>();

    // Additions wrap by name, since a check at each would keep this from being vectorised. None
    // does wrap: a lane takes 2^32 words of 2^32, which are more bytes than an address space has
    // in practice (256 GiB) and far more than a frame.
    let mut lanes = [0u64; LANES];
    let mut blocks = bytes.chunks_exact(LANES * WORD);
    for block in &mut blocks {
        let (words, _) = block.as_chunks::<WORD>();
        for (lane, word) in lanes.iter_mut().zip(words) {
            *lane = lane.wrapping_add(u64::from(u32::from_le_bytes(*word)));
        }
    }
    let mut sum = 0u64;
    for lane in lanes {
        // Folded to 33 bits first, so that the lanes together can't overflow.
        sum = sum.wrapping_add((lane >> 32).wrapping_add(lane & 0xffff_ffff));
    }
    let (words, tail) = blocks.remainder().as_chunks::<WORD>();
    for word in words {
        sum = sum.wrapping_add(u64::from(u32::from_le_bytes(*word)));
    }
    let mut last = [0; WORD];
    for (to, from) in last.iter_mut().zip(tail) {
        *to = *from;
    }
    fold(sum.wrapping_add(u64::from(u32::from_le_bytes(last))))
}

/// The ones-complement sum of the four 16-bit words of `sum`.
#[inline]
fn fold(sum: u64) -> u16 {
    let sum = (sum >> 32).wrapping_add(sum & 0xffff_ffff); // 33 bits
    let sum = (sum >> 16).wrapping_add(sum & 0xffff); // 18 bits
    let sum = (sum >> 16).wrapping_add(sum & 0xffff); // 17 bits
    let sum = (sum >> 16).wrapping_add(sum & 0xffff); // 16 bits
    sum as u16
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::testing::naive_sum;
    use super::*;

    fn reference(bytes: &[u8]) -> u16 {
        !naive_sum(bytes)
    }

    fn whole(bytes: &[u8]) -> Sum {
        let mut sum = Sum::default();
        sum.add(bytes);
        sum
    }

    #[test]
    fn the_example_of_rfc_1071() {
        let sum = whole(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]);
        assert_eq!(sum.partial(), 0xddf2);
        assert_eq!(sum.finish(), 0x220d);
    }

    #[test]
    fn nothing_sums_to_zero_and_ones_to_ones() {
        assert_eq!(Sum::default().finish(), 0xffff);
        // All carries: the largest lanes there are for a frame.
        assert_eq!(whole(&vec![0xff; 65_550]).finish(), 0);
        assert_eq!(whole(&[0xff; 3]).partial(), 0xff00);
    }

    #[test]
    fn every_alignment_and_length() {
        let bytes: Vec<u8> = (0..300u32).map(|i| (i * 89 % 251) as u8).collect();
        for start in 0..16 {
            for end in start..bytes.len() {
                let piece = &bytes[start..end];
                assert_eq!(whole(piece).finish(), reference(piece), "{start}..{end}");
            }
        }
    }

    proptest! {
        #[test]
        fn pieces_sum_to_the_whole(
            bytes in prop::collection::vec(any::<u8>(), 0..2000),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..6),
        ) {
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let mut added = Sum::default();
            let mut combined = Sum::default();
            for cut in cuts.windows(2) {
                let piece = &bytes[cut[0]..cut[1]];
                added.add(piece);
                combined.combine(whole(piece), cut[0] % 2 != 0);
            }
            let expected = reference(&bytes);
            prop_assert_eq!(added.finish(), expected);
            prop_assert_eq!(combined.finish(), expected);
            // Both know where the next byte goes.
            let mut more = bytes.clone();
            more.push(0xa5);
            added.add(&[0xa5]);
            combined.add(&[0xa5]);
            prop_assert_eq!(added.finish(), reference(&more));
            prop_assert_eq!(combined.finish(), reference(&more));
        }
    }
}
