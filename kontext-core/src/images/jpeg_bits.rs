//! Entropy-coded bits of JPEG, read without computing pixels: ITU-T T.81, appendices F and G.

use super::jpeg_segments::{RST, next_segment};

/// A reason to read no further.
pub(super) enum Stop {
    /// Data is missing.
    Short,
    /// A code that is in no table.
    Damaged,
    /// More blocks than can be read in reasonable time.
    Slow,
    /// A file that the decoder refuses.
    NotKnown,
    Other(crate::Error),
}

/// Bits of the lookup of short codes.
const SHORT: u32 = 9;

/// A Huffman table.
pub(super) struct Table {
    /// Length and symbol of the code that begins `SHORT` bits; length 0 for longer codes.
    short: Vec<[u8; 2]>,
    /// Of each length, the first code after those of the length, in 16 bits, and the symbol's place less the code.
    ends: [u32; 17],
    offsets: [i32; 17],
    symbols: Vec<u8>,
}

pub(super) fn read_tables(mut body: &[u8], tables: &mut [[Option<Table>; 4]; 2]) -> Result<(), Stop> {
    while let [place, rest @ ..] = body {
        let (counts, rest) = rest.split_first_chunk::<16>().ok_or(Stop::NotKnown)?;
        let total = counts.iter().map(|count| usize::from(*count)).sum();
        let (symbols, rest) = rest.split_at_checked(total).ok_or(Stop::NotKnown)?;
        let (class, number) = (usize::from(place >> 4), usize::from(place & 15));
        let slot = tables.get_mut(class).and_then(|tables| tables.get_mut(number));
        *slot.ok_or(Stop::NotKnown)? = Some(Table::new(counts, symbols)?);
        body = rest;
    }
    Ok(())
}

impl Table {
    fn new(counts: &[u8; 16], symbols: &[u8]) -> Result<Self, Stop> {
        let mut table = Self {
            short: vec![[0; 2]; 1 << SHORT],
            ends: [0; 17],
            offsets: [0; 17],
            symbols: symbols.to_vec(),
        };
        let (mut code, mut place) = (0_u32, 0_usize);
        for (length, count) in (1_u32..).zip(counts) {
            table.offsets[length as usize] = place as i32 - code as i32;
            for symbol in &symbols[place..place + usize::from(*count)] {
                if code >> length > 0 {
                    return Err(Stop::NotKnown);
                }
                if length <= SHORT {
                    let width = SHORT - length;
                    let start = (code << width) as usize;
                    table.short[start..start + (1 << width)].fill([length as u8, *symbol]);
                }
                code += 1;
            }
            place += usize::from(*count);
            table.ends[length as usize] = code << (16 - length);
            code <<= 1;
        }
        Ok(table)
    }

    /// Returns length and symbol of the code at the head of 16 bits.
    fn find(&self, head: u32) -> Option<(u32, u8)> {
        let [length, symbol] = self.short[(head >> (16 - SHORT)) as usize];
        if length > 0 {
            return Some((u32::from(length), symbol));
        }
        let length = (SHORT + 1..=16).find(|length| head < self.ends[*length as usize])?;
        let place = (head >> (16 - length)) as i32 + self.offsets[length as usize];
        Some((length, *self.symbols.get(place as usize)?))
    }
}

/// Bits of entropy-coded data, up to a marker.
pub(super) struct Bits<'a> {
    file: &'a [u8],
    /// Place of the next byte, or of the marker.
    pub at: usize,
    held: u64,
    count: u32,
}

impl<'a> Bits<'a> {
    pub(super) fn new(file: &'a [u8], at: usize) -> Self {
        Self {
            file,
            at,
            held: 0,
            count: 0,
        }
    }

    /// Holds at least 32 bits, or all before the marker.
    fn fill(&mut self) {
        while self.count <= 56 {
            let byte = match self.file[self.at.min(self.file.len())..] {
                [0xff, ref rest @ ..] => {
                    let fill = rest.iter().take_while(|byte| **byte == 0xff).count();
                    if rest.get(fill) != Some(&0) {
                        return;
                    }
                    self.at += fill + 1;
                    0xff
                }
                [byte, ..] => byte,
                [] => return,
            };
            self.at += 1;
            self.held = self.held << 8 | u64::from(byte);
            self.count += 8;
        }
    }

    pub(super) fn take(&mut self, count: u32) -> Result<u32, Stop> {
        if self.count < count {
            self.fill();
        }
        self.count = self.count.checked_sub(count).ok_or(Stop::Short)?;
        Ok((self.held >> self.count) as u32 & ((1_u64 << count) - 1) as u32)
    }

    fn symbol(&mut self, table: Option<&Table>) -> Result<u8, Stop> {
        let table = table.ok_or(Stop::NotKnown)?;
        if self.count < 16 {
            self.fill();
        }
        // Past the end there are ones, which begin no code of full length.
        let head = if self.count >= 16 {
            self.held >> (self.count - 16)
        } else {
            let missing = 16 - self.count;
            self.held << missing | ((1 << missing) - 1)
        };
        let found = table.find((head & 0xffff) as u32);
        let (length, symbol) = found.ok_or(if self.count < 16 { Stop::Short } else { Stop::Damaged })?;
        self.count = self.count.checked_sub(length).ok_or(Stop::Short)?;
        Ok(symbol)
    }

    /// Reads a level of a block's average.
    pub(super) fn magnitude(&mut self, table: Option<&Table>) -> Result<(), Stop> {
        let length = self.symbol(table)?;
        self.take(u32::from(length.min(16))).map(drop)
    }

    /// Reads the coefficients of a block of a sequential image.
    pub(super) fn coefficients(&mut self, table: Option<&Table>) -> Result<(), Stop> {
        let mut place = 1;
        while place < 64 {
            let symbol = self.symbol(table)?;
            match (symbol >> 4, symbol & 15) {
                (15, 0) => place += 16,
                (_, 0) => break,
                (zeros, length) => {
                    place += zeros + 1;
                    self.take(u32::from(length))?;
                }
            }
        }
        Ok(())
    }

    /// Reads a band of a block's coefficients; returns the number of blocks after it whose band is empty.
    pub(super) fn band(&mut self, table: Option<&Table>, band: [usize; 2], set: &mut u64) -> Result<usize, Stop> {
        let mut place = band[0];
        while place <= band[1] {
            let symbol = self.symbol(table)?;
            let (high, length) = (symbol >> 4, symbol & 15);
            match (high, length) {
                (15, 0) => place += 16,
                (_, 0) => return self.run(high).map(|run| run - 1),
                _ => {
                    place += usize::from(high);
                    self.take(u32::from(length))?;
                    *set |= 1_u64.checked_shl(place as u32).unwrap_or_default();
                    place += 1;
                }
            }
        }
        Ok(0)
    }

    /// Reads one more bit of a band of a block's coefficients.
    pub(super) fn refine(
        &mut self,
        table: Option<&Table>,
        band: [usize; 2],
        set: &mut u64,
        end_of_band: &mut usize,
    ) -> Result<(), Stop> {
        let mut place = band[0];
        while *end_of_band == 0 && place <= band[1] {
            let symbol = self.symbol(table)?;
            let (high, length) = (symbol >> 4, symbol & 15);
            if length == 0 && high < 15 {
                *end_of_band = self.run(high)?;
                break;
            }
            if length > 0 {
                // The sign of a coefficient that was zero.
                self.take(1)?;
            }
            let mut zeros = high;
            while place <= band[1] {
                if *set >> place & 1 == 1 {
                    self.take(1)?;
                } else if zeros == 0 {
                    break;
                } else {
                    zeros -= 1;
                }
                place += 1;
            }
            if length > 0 && place <= band[1] {
                *set |= 1 << place;
            }
            place += 1;
        }
        if *end_of_band > 0 {
            // Places above the band are not of this scan.
            let rest = (*set << (63 - band[1])).checked_shr((63 - band[1] + place) as u32);
            let count = rest.unwrap_or_default().count_ones();
            self.take(count.min(32))?;
            self.take(count.saturating_sub(32))?;
            *end_of_band -= 1;
        }
        Ok(())
    }

    /// Reads the number of blocks whose band is empty, at least 1.
    fn run(&mut self, length: u8) -> Result<usize, Stop> {
        Ok((1 << length) + self.take(u32::from(length))? as usize)
    }

    /// Goes on after the next restart marker; bits before it fill the last byte.
    pub(super) fn restart(&mut self) -> Result<(), Stop> {
        self.count = 0;
        match next_segment(self.file, self.at) {
            Some(segment) if RST.contains(&segment.kind) => {
                self.at = segment.start;
                Ok(())
            }
            _ => Err(Stop::Short),
        }
    }
}
