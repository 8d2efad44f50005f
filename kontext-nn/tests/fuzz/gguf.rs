//! A GGUF file in its parts, and mutations that know its format.

use crate::common::{described, entry, gguf_file, text};
use kontext_fixtures::fuzz::Draw;

/// Type numbers with the elements and bytes of their blocks; the last two are not known.
const TYPES: [(u32, u64, u64); 17] = [
    (0, 1, 4),
    (1, 1, 2),
    (2, 32, 18),
    (3, 32, 20),
    (6, 32, 22),
    (7, 32, 24),
    (8, 32, 34),
    (10, 256, 84),
    (11, 256, 110),
    (12, 256, 144),
    (13, 256, 176),
    (14, 256, 210),
    (20, 32, 18),
    (23, 256, 136),
    (30, 1, 2),
    (16, 256, 66),
    (u32::MAX, 1, 1),
];

#[derive(Clone)]
pub(crate) struct Gguf {
    version: u32,
    entries: Vec<Entry>,
    tensors: Vec<Tensor>,
    data: Vec<u8>,
    /// Counts of tensors and entries, if they differ from the actual ones.
    counts: [Option<u64>; 2],
}

#[derive(Clone)]
struct Entry {
    key: Vec<u8>,
    kind: u32,
    value: Vec<u8>,
}

#[derive(Clone)]
struct Tensor {
    name: Vec<u8>,
    /// Sides, columns first.
    sides: Vec<u64>,
    kind: u32,
    offset: u64,
}

impl Gguf {
    /// Reads the parts of a sound file.
    pub(crate) fn read(file: &[u8]) -> Option<Self> {
        let mut rest = file.strip_prefix(b"GGUF")?;
        let version = u32_of(&mut rest)?;
        let (tensors, entries) = (u64_of(&mut rest)?, u64_of(&mut rest)?);
        let entry = |rest: &mut &[u8]| {
            let (key, kind) = (text_of(rest)?.to_vec(), u32_of(rest)?);
            let start = *rest;
            skip(rest, kind)?;
            Some(Entry {
                key,
                kind,
                value: start[..start.len() - rest.len()].to_vec(),
            })
        };
        let entries = (0..entries).map(|_| entry(&mut rest)).collect::<Option<Vec<_>>>()?;
        let tensor = |rest: &mut &[u8]| {
            let name = text_of(rest)?.to_vec();
            let sides = (0..u32_of(rest)?).map(|_| u64_of(rest)).collect::<Option<Vec<_>>>()?;
            Some(Tensor {
                name,
                sides,
                kind: u32_of(rest)?,
                offset: u64_of(rest)?,
            })
        };
        let tensors = (0..tensors).map(|_| tensor(&mut rest)).collect::<Option<Vec<_>>>()?;
        let start = (file.len() - rest.len()).next_multiple_of(32);
        Some(Self {
            version,
            entries,
            tensors,
            data: file.get(start..).unwrap_or_default().to_vec(),
            counts: [None; 2],
        })
    }

    /// Builds the file.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let entries: Vec<_> = self.entries.iter().map(|e| entry(&e.key, e.kind, &e.value)).collect();
        let tensors: Vec<_> = self
            .tensors
            .iter()
            .map(|t| described(&t.name, &t.sides, t.kind, t.offset))
            .collect();
        let mut file = gguf_file(self.version, &entries, &tensors, &self.data);
        for (count, at) in self.counts.iter().zip([8, 16]) {
            if let Some(count) = count {
                file[at..at + 8].copy_from_slice(&count.to_le_bytes());
            }
        }
        file
    }

    /// Mutates one thing.
    pub(crate) fn change(&mut self, draw: &mut Draw) {
        let (index, key) = (draw.below(self.tensors.len()), draw.below(self.entries.len()));
        match draw.below(12) {
            0 if draw.once_in(4) => self.version = draw.edge() as u32,
            0 => self.counts[draw.below(2)] = Some(draw.edge()),
            1 => self.entries.push(Entry::new(draw)),
            2 if !self.entries.is_empty() => self.entries[key].value = draw.edge().to_le_bytes().to_vec(),
            3 if !self.entries.is_empty() => self.entries[key].kind = draw.below(14) as u32,
            4 if !self.entries.is_empty() => drop(self.entries.remove(key)),
            5 | 6 => self.add(draw),
            7 if !self.tensors.is_empty() => drop(self.tensors.remove(index)),
            _ => {
                if let Some(tensor) = self.tensors.get_mut(index) {
                    tensor.change(draw);
                }
            }
        }
    }

    /// Adds a sound tensor of some type and its data, or one that shares data.
    fn add(&mut self, draw: &mut Draw) {
        let &(kind, block, bytes) = draw.pick(&TYPES);
        let mut sides = vec![block * (1 + draw.below(4) as u64)];
        (0..draw.below(4)).for_each(|_| sides.push(1 + draw.below(4) as u64));
        self.data.resize(self.data.len().next_multiple_of(32), 0);
        let offset = if draw.once_in(8) { 0 } else { self.data.len() as u64 };
        let count = sides.iter().product::<u64>() / block * bytes;
        self.data.extend(draw.bytes(count as usize));
        let name = format!(
            "{}{}",
            draw.pick(&["layer", "other"]),
            draw.pick(&[".weight", ".bias", ".norm"])
        );
        self.tensors.push(Tensor {
            name: name.into_bytes(),
            sides,
            kind,
            offset,
        });
    }
}

impl Entry {
    fn new(draw: &mut Draw) -> Self {
        const KEYS: [&str; 5] = ["general.alignment", "general.architecture", "key", "", "other"];
        let key = draw.pick(&KEYS).as_bytes().to_vec();
        let kind = draw.below(13) as u32;
        let value = match kind {
            8 => text(draw.pick(&["flux", "", "\u{e9}"])),
            9 => {
                let element = draw.below(13) as u32;
                let count = if draw.once_in(3) {
                    draw.edge()
                } else {
                    draw.below(8) as u64
                };
                let length = draw.below(80);
                [&element.to_le_bytes()[..], &count.to_le_bytes(), &draw.bytes(length)].concat()
            }
            _ => {
                let width = [1, 1, 2, 2, 4, 4, 4, 1, 8, 8, 8, 8, 8][kind as usize];
                let number = 1_u64 << draw.below(64);
                number.to_le_bytes()[..width].to_vec()
            }
        };
        Self { key, kind, value }
    }
}

impl Tensor {
    fn change(&mut self, draw: &mut Draw) {
        match draw.below(6) {
            0 => self.kind = draw.pick(&TYPES).0,
            1 => {
                self.offset = if draw.once_in(2) {
                    draw.edge()
                } else {
                    draw.edge() & !31
                }
            }
            2 if draw.once_in(2) => self.sides.push(1 + draw.below(2) as u64),
            2 => drop(self.sides.pop()),
            3 => {
                let length = draw.below(6);
                self.name = draw.bytes(length);
            }
            4 => self.sides.reverse(),
            _ => {
                let side = draw.below(self.sides.len());
                if let Some(side) = self.sides.get_mut(side) {
                    *side = draw.edge();
                }
            }
        }
    }
}

fn take<'a>(rest: &mut &'a [u8], count: u64) -> Option<&'a [u8]> {
    let (taken, left) = rest.split_at_checked(count as usize)?;
    *rest = left;
    Some(taken)
}

fn u32_of(rest: &mut &[u8]) -> Option<u32> {
    Some(u32::from_le_bytes(take(rest, 4)?.try_into().ok()?))
}

fn u64_of(rest: &mut &[u8]) -> Option<u64> {
    Some(u64::from_le_bytes(take(rest, 8)?.try_into().ok()?))
}

fn text_of<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = u64_of(rest)?;
    take(rest, length)
}

/// Skips a metadata value.
fn skip(rest: &mut &[u8], kind: u32) -> Option<()> {
    match kind {
        8 => drop(text_of(rest)?),
        9 => {
            let (element, count) = (u32_of(rest)?, u64_of(rest)?);
            (0..count).try_for_each(|_| skip(rest, element))?;
        }
        0 | 1 | 7 => drop(take(rest, 1)?),
        2 | 3 => drop(take(rest, 2)?),
        4..=6 => drop(take(rest, 4)?),
        _ => drop(take(rest, 8)?),
    }
    Some(())
}
