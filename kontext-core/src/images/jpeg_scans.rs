//! Check that a JPEG holds the data of all its blocks.
//!
//! Decoders fill missing data with grey and say nothing, also libjpeg if the end mark is there. So the entropy-coded
//! data is read once before, without computing pixels: ITU-T T.81, appendices B, F and G. A progressive image that ends
//! between two scans is whole, at the precision of its scans.

use super::decoded::{Failure, ends_early};
use super::jpeg_bits::{Bits, Stop, Table, read_tables};
use super::jpeg_segments::{DHT, DRI, EOI, OTHER_CODINGS, SOF_PROGRESSIVE, SOF_SEQUENTIAL, SOI, SOS, next_segment};
use crate::buffer;

/// Scans after which the decoder gives up, too.
const MOST_SCANS: usize = 100;
/// Blocks that all scans of an image of usual size may hold together: three times those of the largest image that is
/// opened by default, with the ten scans that encoders write. A scan of empty blocks takes few bytes and much time.
const MOST_BLOCKS: usize = 1 << 27;
/// Blocks that all scans of a larger image may hold together, in blocks of one component: twice as many as eight scans
/// of three components.
const MOST_TIMES: usize = 48;

/// Checks that the data of all blocks is there, and the end mark of the first image.
///
/// A file that the decoder refuses by itself, as one without tables, passes.
pub(super) fn check(file: &[u8]) -> Result<(), Failure> {
    match read(file) {
        Ok(()) | Err(Stop::NotKnown) => Ok(()),
        Err(Stop::Short) => Err(ends_early()),
        Err(Stop::Slow) => Err(Failure::Reason(
            "it has too many scans for its size; save it again as PNG or JPEG".into(),
        )),
        Err(Stop::Damaged) => Err(Failure::Reason("its data is damaged; fetch or save it again".into())),
        Err(Stop::Other(error)) => Err(error.into()),
    }
}

fn read(file: &[u8]) -> Result<(), Stop> {
    let mut tables: [[Option<Table>; 4]; 2] = Default::default();
    let mut restart = 0;
    let mut frame: Option<Frame> = None;
    let (mut at, mut scans, mut blocks) = (0, 0, 0_usize);
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
                let scan = Scan::parse(body, frame)?;
                blocks = blocks.saturating_add(scan.blocks(frame));
                if blocks > most_blocks(frame.width, frame.height) && scans > 1 {
                    return Err(Stop::Slow);
                }
                scan.read(frame, &tables, restart, &mut bits)?;
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

/// Returns the number of blocks that all scans may hold together.
fn most_blocks(width: usize, height: usize) -> usize {
    let of_one = width.div_ceil(8) * height.div_ceil(8);
    MOST_BLOCKS.max(of_one.saturating_mul(MOST_TIMES))
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

    /// Returns the number of blocks.
    fn blocks(&self, frame: &Frame) -> usize {
        let [across, down] = frame.units(&self.selected);
        let sampling = |selected: &Selected| frame.components[selected.component].sampling.iter().product::<usize>();
        let of_unit = match &self.selected[..] {
            [_] => 1,
            all => all.iter().map(sampling).sum(),
        };
        across * down * of_unit
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_of_any_size_may_have_the_scans_that_encoders_write() {
        for side in [64, 8192, 20_000, 65_535] {
            // Ten scans of three components at full resolution.
            let usual = 10 * 3 * usize::div_ceil(side, 8).pow(2);
            assert!(most_blocks(side, side) > usual, "{side}");
        }
        // A small file of many scans is still slow.
        assert_eq!(most_blocks(64, 64), MOST_BLOCKS);
    }
}
