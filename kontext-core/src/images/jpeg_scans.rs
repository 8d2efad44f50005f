//! Check that a JPEG holds the data of all its blocks.
//!
//! Decoders fill missing data with grey and say nothing, also libjpeg if the end mark is there. So the entropy-coded
//! data is read once before, without computing pixels: ITU-T T.81, appendices B, F and G. A progressive image that ends
//! between two scans is whole, at the precision of its scans.

use super::open::{Failure, ends_early};
use crate::buffer;

/// Markers, without the 0xff before them.
pub(super) const APP1: u8 = 0xe1;
pub(super) const APP14: u8 = 0xee;
const SOF_SEQUENTIAL: [u8; 2] = [0xc0, 0xc1];
const SOF_PROGRESSIVE: u8 = 0xc2;
/// Frames in lossless, hierarchical and arithmetic coding, and the conditions of the last.
const OTHER_CODINGS: [u8; 11] = [0xc3, 0xc5, 0xc6, 0xc7, 0xc9, 0xca, 0xcb, 0xcd, 0xce, 0xcf, 0xcc];
const DHT: u8 = 0xc4;
const RST: std::ops::RangeInclusive<u8> = 0xd0..=0xd7;
const SOI: u8 = 0xd8;
const EOI: u8 = 0xd9;
const SOS: u8 = 0xda;
const DRI: u8 = 0xdd;
const TEM: u8 = 0x01;

/// Scans after which the decoder gives up, too.
const MOST_SCANS: usize = 100;

/// A marker segment.
#[derive(Debug, Clone, Copy)]
pub(super) struct Segment<'a> {
    /// The marker, without the 0xff before it.
    pub kind: u8,
    /// Place of the body in the file.
    pub start: usize,
    /// The content after the length.
    pub body: &'a [u8],
}

/// Returns the segments before the first scan.
pub(super) fn segments(file: &[u8]) -> impl Iterator<Item = Segment<'_>> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let segment = next_segment(file, at)?;
        at = segment.start + segment.body.len();
        (segment.kind != SOS && segment.kind != EOI).then_some(segment)
    })
}

/// Returns the first segment from `at` on; `None` at the end of the file. Bytes before a marker are skipped.
fn next_segment(file: &[u8], mut at: usize) -> Option<Segment<'_>> {
    loop {
        let [mark, kind] = *file.get(at..)?.first_chunk()?;
        if mark != 0xff || kind == 0 || kind == 0xff {
            at += 1;
            continue;
        }
        let start = at + 2;
        if RST.contains(&kind) || [SOI, EOI, TEM].contains(&kind) {
            let body = &file[start..start];
            return Some(Segment { kind, start, body });
        }
        let length = usize::from(u16::from_be_bytes(*file.get(start..)?.first_chunk()?));
        let body = file.get(start + 2..start + length.max(2))?;
        return Some(Segment {
            kind,
            start: start + 2,
            body,
        });
    }
}

/// Checks that the file has one of the codings that are decoded.
pub(super) fn check_coding(file: &[u8]) -> Result<(), Failure> {
    match segments(file).find(|segment| OTHER_CODINGS.contains(&segment.kind)) {
        None => Ok(()),
        Some(_) => Err(Failure::Reason(
            "it is a JPEG in lossless, hierarchical or arithmetic coding, which is not supported; save it as PNG, or as \
             JPEG in baseline or progressive coding"
                .into(),
        )),
    }
}

/// Checks that the data of all blocks is there, and the end mark of the first image.
///
/// A file that the decoder refuses by itself, as one without tables, passes.
pub(super) fn check(file: &[u8]) -> Result<(), Failure> {
    match read(file) {
        Ok(()) | Err(Stop::NotKnown) => Ok(()),
        Err(Stop::Short) => Err(ends_early()),
        Err(Stop::Damaged) => Err(Failure::Reason("its data is damaged; fetch or save it again".into())),
        Err(Stop::Other(error)) => Err(error.into()),
    }
}

/// A reason to read no further.
enum Stop {
    /// Data is missing.
    Short,
    /// A code that is in no table.
    Damaged,
    /// A file that the decoder refuses.
    NotKnown,
    Other(crate::Error),
}

fn read(file: &[u8]) -> Result<(), Stop> {
    let mut tables: [[Option<Table>; 4]; 2] = Default::default();
    let mut restart = 0;
    let mut frame: Option<Frame> = None;
    let (mut at, mut scans) = (0, 0);
    loop {
        let segment = next_segment(file, at).ok_or(Stop::Short)?;
        let body = segment.body;
        at = segment.start + body.len();
        match segment.kind {
            EOI => break,
            SOI if segment.start > 2 => return Err(Stop::Short),
            DHT => read_tables(body, &mut tables)?,
            DRI => restart = usize::from(u16::from_be_bytes(*body.first_chunk().ok_or(Stop::NotKnown)?)),
            kind if SOF_SEQUENTIAL.contains(&kind) || kind == SOF_PROGRESSIVE => {
                if frame.is_some() {
                    return Err(Stop::NotKnown);
                }
                frame = Some(Frame::parse(body, kind == SOF_PROGRESSIVE)?);
            }
            kind if OTHER_CODINGS.contains(&kind) => return Err(Stop::NotKnown),
            SOS => {
                scans += 1;
                let frame = frame.as_mut().filter(|_| scans <= MOST_SCANS).ok_or(Stop::NotKnown)?;
                let mut bits = Bits::new(file, at);
                Scan::parse(body, frame)?.read(frame, &tables, restart, &mut bits)?;
                at = bits.at;
            }
            _ => {}
        }
    }
    match frame {
        Some(frame) if frame.components.iter().any(|component| !component.seen) => Err(Stop::Short),
        _ => Ok(()),
    }
}

/// Size and components of the image.
struct Frame {
    progressive: bool,
    width: usize,
    height: usize,
    /// Largest sampling factors.
    most: [usize; 2],
    components: Vec<Component>,
}

struct Component {
    id: u8,
    /// Sampling factors, across and down.
    sampling: [usize; 2],
    /// A scan holds its average levels.
    seen: bool,
    /// Bit k of a block is set if its coefficient k is not zero, of which the refining scans depend.
    set: Vec<u64>,
}

impl Frame {
    fn parse(body: &[u8], progressive: bool) -> Result<Self, Stop> {
        let [_, h1, h0, w1, w0, _, rest @ ..] = body else {
            return Err(Stop::NotKnown);
        };
        let component = |&[id, sampling, _]: &[u8; 3]| Component {
            id,
            sampling: [usize::from(sampling >> 4), usize::from(sampling & 15)],
            seen: false,
            set: Vec::new(),
        };
        let components: Vec<Component> = rest.as_chunks::<3>().0.iter().map(component).collect();
        let of = |axis: usize| components.iter().map(move |component| component.sampling[axis]);
        if components.is_empty() || of(0).chain(of(1)).any(|factor| !(1..=4).contains(&factor)) {
            return Err(Stop::NotKnown);
        }
        let side = |high: u8, low: u8| usize::from(u16::from_be_bytes([high, low]));
        Ok(Self {
            progressive,
            width: side(*w1, *w0),
            height: side(*h1, *h0),
            most: [of(0).max().unwrap_or(1), of(1).max().unwrap_or(1)],
            components,
        })
    }

    /// Returns the number of coding units across and down: of one component, its blocks.
    fn units(&self, scan: &[Selected]) -> [usize; 2] {
        let most = self.most;
        match scan {
            [one] => {
                let [across, down] = self.components[one.component].sampling;
                let samples = [
                    (self.width * across).div_ceil(most[0]),
                    (self.height * down).div_ceil(most[1]),
                ];
                samples.map(|samples| samples.div_ceil(8))
            }
            _ => [self.width.div_ceil(8 * most[0]), self.height.div_ceil(8 * most[1])],
        }
    }
}

/// A component of a scan, with its tables.
struct Selected {
    component: usize,
    dc: usize,
    ac: usize,
}

/// The header of a scan.
struct Scan {
    selected: Vec<Selected>,
    /// First and last coefficient.
    band: [usize; 2],
    /// An earlier scan held the higher bits.
    refines: bool,
}

impl Scan {
    fn parse(body: &[u8], frame: &Frame) -> Result<Self, Stop> {
        let (count, rest) = body.split_first().ok_or(Stop::NotKnown)?;
        let count = usize::from(*count);
        let Some((selectors, [first, last, bits])) = rest.split_at_checked(2 * count) else {
            return Err(Stop::NotKnown);
        };
        let select = |&[id, tables]: &[u8; 2]| {
            let component = frame.components.iter().position(|component| component.id == id)?;
            Some(Selected {
                component,
                dc: usize::from(tables >> 4 & 3),
                ac: usize::from(tables & 3),
            })
        };
        let selected: Option<Vec<_>> = selectors.as_chunks::<2>().0.iter().map(select).collect();
        let band = if frame.progressive {
            [*first, *last].map(usize::from)
        } else {
            [0, 63]
        };
        let selected = selected.filter(|selected| !selected.is_empty()).ok_or(Stop::NotKnown)?;
        if band[1] > 63 || band[0] > band[1] || (band[0] > 0 && selected.len() > 1) {
            return Err(Stop::NotKnown);
        }
        Ok(Self {
            selected,
            band,
            refines: frame.progressive && bits >> 4 > 0,
        })
    }

    /// Reads the data of all blocks.
    fn read(
        &self,
        frame: &mut Frame,
        tables: &[[Option<Table>; 4]; 2],
        restart: usize,
        bits: &mut Bits<'_>,
    ) -> Result<(), Stop> {
        let [across, down] = frame.units(&self.selected);
        let interleaved = self.selected.len() > 1;
        let mut end_of_band = 0_usize;
        for selected in &self.selected {
            let component = &mut frame.components[selected.component];
            component.seen |= self.band[0] == 0;
            if self.band[0] > 0 && component.set.is_empty() {
                component.set = buffer::filled(0, across * down, "the blocks of a JPEG").map_err(Stop::Other)?;
            }
        }
        for unit in 0..across * down {
            if restart > 0 && unit > 0 && unit % restart == 0 {
                bits.restart()?;
                end_of_band = 0;
            }
            for selected in &self.selected {
                let component = &mut frame.components[selected.component];
                let [dc, ac] = [tables[0][selected.dc].as_ref(), tables[1][selected.ac].as_ref()];
                let blocks = if interleaved {
                    component.sampling[0] * component.sampling[1]
                } else {
                    1
                };
                for _ in 0..blocks {
                    if !frame.progressive {
                        bits.magnitude(dc)?;
                        bits.coefficients(ac)?;
                    } else if self.band[0] > 0 {
                        let set = component.set.get_mut(unit).ok_or(Stop::NotKnown)?;
                        if self.refines {
                            bits.refine(ac, self.band, set, &mut end_of_band)?;
                        } else if end_of_band > 0 {
                            end_of_band -= 1;
                        } else {
                            end_of_band = bits.band(ac, self.band, set)?;
                        }
                    } else if self.refines {
                        bits.take(1)?;
                    } else {
                        bits.magnitude(dc)?;
                    }
                }
            }
        }
        Ok(())
    }
}

/// Bits of the lookup of short codes.
const SHORT: u32 = 9;

/// A Huffman table.
struct Table {
    /// Length and symbol of the code that begins `SHORT` bits; length 0 for longer codes.
    short: Vec<[u8; 2]>,
    /// Of each length, the first code after those of the length, in 16 bits, and the symbol's place less the code.
    ends: [u32; 17],
    offsets: [i32; 17],
    symbols: Vec<u8>,
}

fn read_tables(mut body: &[u8], tables: &mut [[Option<Table>; 4]; 2]) -> Result<(), Stop> {
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
struct Bits<'a> {
    file: &'a [u8],
    /// Place of the next byte, or of the marker.
    at: usize,
    held: u64,
    count: u32,
}

impl<'a> Bits<'a> {
    fn new(file: &'a [u8], at: usize) -> Self {
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

    fn take(&mut self, count: u32) -> Result<u32, Stop> {
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
    fn magnitude(&mut self, table: Option<&Table>) -> Result<(), Stop> {
        let length = self.symbol(table)?;
        self.take(u32::from(length.min(16))).map(drop)
    }

    /// Reads the coefficients of a block of a sequential image.
    fn coefficients(&mut self, table: Option<&Table>) -> Result<(), Stop> {
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
    fn band(&mut self, table: Option<&Table>, band: [usize; 2], set: &mut u64) -> Result<usize, Stop> {
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
    fn refine(
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
            for place in place..=band[1] {
                self.take((*set >> place & 1) as u32)?;
            }
            *end_of_band -= 1;
        }
        Ok(())
    }

    /// Reads the number of blocks whose band is empty, at least 1.
    fn run(&mut self, length: u8) -> Result<usize, Stop> {
        Ok((1 << length) + self.take(u32::from(length))? as usize)
    }

    /// Goes on after the next restart marker; bits before it fill the last byte.
    fn restart(&mut self) -> Result<(), Stop> {
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
