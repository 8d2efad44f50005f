//! Seeded numbers, the same on every machine.

/// The SplitMix64 generator.
pub(crate) struct Draw(u64);

impl Draw {
    /// Creates the generator for one case of a seed.
    pub(crate) fn new(seed: u64, case: u64) -> Self {
        let mut draw = Self(seed);
        Self(draw.next() ^ case.wrapping_mul(0xd134_2543_de82_ef95))
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Draws a number less than `end`; 0 if `end` is 0.
    pub(crate) fn below(&mut self, end: usize) -> usize {
        (self.next() % end.max(1) as u64) as usize
    }

    /// Returns `true` once in `times` draws, on average.
    pub(crate) fn once_in(&mut self, times: usize) -> bool {
        self.below(times) == 0
    }

    pub(crate) fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len())]
    }

    /// Draws a part of `0..length`, often a short one.
    pub(crate) fn range(&mut self, length: usize) -> std::ops::Range<usize> {
        let start = self.below(length + 1);
        let most = if self.once_in(2) { 16 } else { length };
        start..start + self.below(most.min(length - start) + 1)
    }

    /// Draws a small number, or one at which sums and products overflow, or any.
    pub(crate) fn edge(&mut self) -> u64 {
        let near = 1_u64 << self.below(64);
        match self.below(8) {
            0..=2 => self.below(10) as u64,
            3 => *self.pick(&[16, 32, 64, 255, 256, 257, 1024, 65_535]),
            4 => near,
            5 => near - 1,
            6 => near.wrapping_neg(),
            _ => self.next() >> self.below(64),
        }
    }

    pub(crate) fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| self.next() as u8).collect()
    }
}
