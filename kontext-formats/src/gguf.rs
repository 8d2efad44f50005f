//! Parsing and validation of a GGUF header: metadata, then the type, shape and position of each tensor.
//!
//! Source: ggml-org/ggml `docs/gguf.md`; ggml-org/llama.cpp `gguf-py/gguf/gguf_reader.py`.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use kontext_core::CheckpointError;

use super::gguf_value::{AGAIN, Cursor, Value, bad};
use super::quant::Format;

/// Magic bytes at the start of a GGUF file.
pub(super) const MAGIC: &[u8] = b"GGUF";
/// Default alignment of tensor data, in bytes.
pub(super) const ALIGNMENT: usize = 32;
/// Metadata key that overrides the default alignment.
pub(super) const ALIGNMENT_KEY: &str = "general.alignment";
/// Longest metadata name, the format's own limit.
const LONGEST_NAME: usize = 65_535;
/// Longest side of a tensor, which no model exceeds; products of two such sides fit an i64.
const LONGEST_SIDE: u64 = 1 << 31;
/// Smallest description of a tensor in bytes: an empty name, one side.
const SMALLEST_TENSOR: usize = 32;
/// Smallest metadata entry in bytes: an empty name, one byte.
const SMALLEST_ENTRY: usize = 13;

/// The parsed header of a file.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Gguf {
    pub(super) metadata: BTreeMap<String, Value>,
    /// The tensors in file order.
    pub(super) tensors: Vec<TensorInfo>,
}

/// The description of one tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct TensorInfo {
    pub(super) name: String,
    pub(super) format: Format,
    /// Sides in torch's order, from the slowest to the columns.
    pub(super) shape: Vec<i64>,
    /// Byte range in the file.
    pub(super) range: Range<usize>,
}

impl Gguf {
    /// Returns the number, from 1, and the count of the files of a split model; `None` for a whole one.
    ///
    /// Source: ggml-org/llama.cpp `src/llama-model-loader.cpp`, `LLM_KV_SPLIT_COUNT`.
    pub(super) fn split(&self) -> Option<(u64, u64)> {
        let number = |key: &str| self.metadata.get(key).and_then(Value::as_u64);
        let count = number("split.count").filter(|count| *count > 1)?;
        Some((number("split.no").unwrap_or_default().saturating_add(1), count))
    }
}

/// Reads the header of a file. All ranges returned are within the file, and no byte belongs to two tensors.
pub(super) fn read(file: &[u8]) -> Result<Gguf, CheckpointError> {
    let Some(rest) = file.strip_prefix(MAGIC) else {
        return Err(bad(format!("it does not begin with GGUF; {AGAIN}")));
    };
    let mut cursor = Cursor::new(rest);
    match cursor.u32("its version")? {
        2 | 3 => {}
        version if version != 0 && version & 0xffff == 0 => {
            return Err(bad(
                "it is big-endian, expected little-endian; convert it with gguf_convert_endian".to_owned(),
            ));
        }
        version => {
            return Err(bad(format!(
                "it has the version {version}, expected 2 or 3; fetch or convert it anew"
            )));
        }
    }
    let tensors = count(&mut cursor, "tensors", SMALLEST_TENSOR)?;
    let entries = count(&mut cursor, "entries of metadata", SMALLEST_ENTRY)?;
    let mut metadata = BTreeMap::new();
    for _ in 0..entries {
        let key = name(&mut cursor, "a name in the metadata")?;
        let what = format!("metadata `{key}`");
        let kind = cursor.u32(&what)?;
        let value = Value::read(&mut cursor, kind, &what)?;
        if metadata.insert(key.to_owned(), value).is_some() {
            return Err(bad(format!("{what} is there twice; {AGAIN}")));
        }
    }
    let tensors = (0..tensors)
        .map(|_| Described::read(&mut cursor))
        .collect::<Result<Vec<_>, _>>()?;
    let alignment = alignment(&metadata)?;
    let header = file.len() - cursor.left();
    let start = header.checked_next_multiple_of(alignment).unwrap_or(usize::MAX);
    let tensors = tensors
        .iter()
        .map(|tensor| tensor.place(start, alignment, file.len()))
        .collect::<Result<Vec<_>, _>>()?;
    check_apart(&tensors)?;
    Ok(Gguf { metadata, tensors })
}

/// Reads a count of items of at least `bytes` bytes each.
fn count(cursor: &mut Cursor<'_>, what: &str, bytes: usize) -> Result<u64, CheckpointError> {
    let count = cursor.u64(&format!("the number of {what}"))?;
    let most = (cursor.left() / bytes) as u64;
    if count > most {
        return Err(bad(format!(
            "the number of {what} is {count}, its size allows {most}; {AGAIN}"
        )));
    }
    Ok(count)
}

fn name<'a>(cursor: &mut Cursor<'a>, what: &str) -> Result<&'a str, CheckpointError> {
    let name = cursor.text(what)?;
    if name.len() > LONGEST_NAME {
        return Err(bad(format!(
            "{what} has {} bytes, the most is {LONGEST_NAME}; {AGAIN}",
            name.len()
        )));
    }
    Ok(name)
}

fn alignment(metadata: &BTreeMap<String, Value>) -> Result<usize, CheckpointError> {
    let Some(value) = metadata.get(ALIGNMENT_KEY) else {
        return Ok(ALIGNMENT);
    };
    let bytes = value
        .as_u64()
        .and_then(|bytes| usize::try_from(bytes).ok())
        .filter(|bytes| bytes.is_power_of_two());
    bytes.ok_or_else(|| {
        let got = value
            .as_u64()
            .map_or_else(|| "no whole number".to_owned(), |number| number.to_string());
        bad(format!("`{ALIGNMENT_KEY}` is {got}, expected a power of two; {AGAIN}"))
    })
}

/// A tensor as the file describes it, before the start of the data is known.
struct Described<'a> {
    name: &'a str,
    format: Format,
    shape: Vec<i64>,
    offset: u64,
}

impl<'a> Described<'a> {
    fn read(cursor: &mut Cursor<'a>) -> Result<Self, CheckpointError> {
        let name = name(cursor, "the name of a tensor")?;
        let what = format!("tensor `{name}`");
        let sides = cursor.u32(&what)?;
        if !(1..=4).contains(&sides) {
            return Err(bad(format!("{what} has {sides} sides, expected 1 to 4; {AGAIN}")));
        }
        let mut shape = Vec::with_capacity(4);
        for _ in 0..sides {
            let side = cursor.u64(&what)?;
            if !(1..=LONGEST_SIDE).contains(&side) {
                return Err(bad(format!(
                    "{what} has a side of {side}, expected 1 to {LONGEST_SIDE}; {AGAIN}"
                )));
            }
            shape.push(side as i64);
        }
        shape.reverse();
        let number = cursor.u32(&what)?;
        let format = Format::from_gguf_type(number).ok_or_else(|| unknown(&what, number))?;
        Ok(Self {
            name,
            format,
            shape,
            offset: cursor.u64(&what)?,
        })
    }

    /// Locates its bytes in a file of `size` bytes whose data starts at `start`.
    fn place(&self, start: usize, alignment: usize, size: usize) -> Result<TensorInfo, CheckpointError> {
        let Self {
            name,
            format,
            shape,
            offset,
        } = self;
        let columns = shape.last().map_or(1, |&side| side as usize);
        let Some(row) = format.row_bytes(columns) else {
            let block = format.block();
            let format = format.name();
            return Err(bad(format!(
                "tensor `{name}` has rows of {columns}, {format} asks for a multiple of {block}; {AGAIN}"
            )));
        };
        if !offset.is_multiple_of(alignment as u64) {
            return Err(bad(format!(
                "tensor `{name}` is at {offset}, expected a multiple of {alignment}; {AGAIN}"
            )));
        }
        let rows = shape.iter().rev().skip(1);
        let bytes = rows.fold(row, |bytes, &side| bytes.saturating_mul(side as usize));
        let first = usize::try_from(*offset).unwrap_or(usize::MAX).saturating_add(start);
        let end = first.saturating_add(bytes);
        if end > size {
            return Err(bad(format!(
                "tensor `{name}` would end at {end}, the file has {size} bytes; {AGAIN}"
            )));
        }
        Ok(TensorInfo {
            name: (*name).to_owned(),
            format: *format,
            shape: shape.clone(),
            range: first..end,
        })
    }
}

/// Types of llama.cpp that are not read here, by number.
///
/// Source: ggml-org/llama.cpp `gguf-py/gguf/constants.py`, `GGMLQuantizationType`.
const OTHER_TYPES: [(u32, &str); 21] = [
    (4, "Q4_2"),
    (5, "Q4_3"),
    (9, "Q8_1"),
    (15, "Q8_K"),
    (16, "IQ2_XXS"),
    (17, "IQ2_XS"),
    (18, "IQ3_XXS"),
    (19, "IQ1_S"),
    (21, "IQ3_S"),
    (22, "IQ2_S"),
    (24, "I8"),
    (25, "I16"),
    (26, "I32"),
    (27, "I64"),
    (28, "F64"),
    (29, "IQ1_M"),
    (34, "TQ1_0"),
    (35, "TQ2_0"),
    (39, "MXFP4"),
    (40, "NVFP4"),
    (41, "Q1_0"),
];

fn unknown(what: &str, number: u32) -> CheckpointError {
    let known: Vec<&str> = Format::ALL
        .iter()
        .filter(|f| f.gguf_type().is_some())
        .map(|f| f.name())
        .collect();
    let known = known.join(", ");
    let stored = match OTHER_TYPES.iter().find(|(other, _)| *other == number) {
        Some((_, name)) => format!("is stored in {name}, which is not read here"),
        None => format!("has the type {number}, which is not known here"),
    };
    bad(format!("{what} {stored}; fetch the model in one of {known}"))
}

/// Checks that no name occurs twice and that no two tensors share a byte, so that a small file describes
/// little data.
fn check_apart(tensors: &[TensorInfo]) -> Result<(), CheckpointError> {
    let mut names = BTreeSet::new();
    if let Some(twice) = tensors.iter().find(|tensor| !names.insert(&tensor.name)) {
        return Err(bad(format!("tensor `{}` is there twice; {AGAIN}", twice.name)));
    }
    let mut order: Vec<&TensorInfo> = tensors.iter().collect();
    order.sort_by_key(|tensor| tensor.range.start);
    match order.windows(2).find(|pair| pair[0].range.end > pair[1].range.start) {
        Some(pair) => Err(bad(format!(
            "tensors `{}` and `{}` overlap; {AGAIN}",
            pair[0].name, pair[1].name
        ))),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use kontext_fixtures::Fixture;
    use proptest::prelude::*;

    use super::super::gguf_value::Array;
    use super::*;

    fn file() -> Vec<u8> {
        Fixture::open("quant.safetensors").bytes("gguf")
    }

    /// Returns the message for a file with `from` replaced by `to`, which has the same length.
    fn message(from: &[u8], to: &[u8]) -> String {
        let mut file = file();
        let at = file.windows(from.len()).position(|part| part == from).unwrap();
        file[at..at + from.len()].copy_from_slice(to);
        read(&file).unwrap_err().to_string()
    }

    fn text(text: &str) -> Value {
        Value::Text(text.to_owned())
    }

    #[test]
    fn a_file_of_gguf_py_is_read_with_all_its_types() {
        let file = file();
        let Gguf { metadata, tensors } = read(&file).unwrap();
        let expected = [
            ("general.architecture", text("flux")),
            ("test.u8", Value::U8(u8::MAX)),
            ("test.i8", Value::I8(i8::MIN)),
            ("test.u16", Value::U16(u16::MAX)),
            ("test.i16", Value::I16(i16::MIN)),
            ("test.u32", Value::U32(u32::MAX)),
            ("test.i32", Value::I32(i32::MIN)),
            ("test.u64", Value::U64(u64::MAX)),
            ("test.i64", Value::I64(i64::MIN)),
            ("test.f32", Value::F32(0.5)),
            ("test.f64", Value::F64(0.1)),
            ("test.bool", Value::Bool(true)),
            ("test.text", text("Käse")),
            (
                "test.words",
                Value::Array(Array::new(&[text("a"), text(""), text("word")]).unwrap()),
            ),
            (
                "test.shape",
                Value::Array(Array::new(&[Value::I32(3), Value::I32(-1), Value::I32(2)]).unwrap()),
            ),
        ];
        assert_eq!(metadata, expected.map(|(key, value)| (key.to_owned(), value)).into());
        let shapes: Vec<_> = tensors
            .iter()
            .map(|t| (t.name.as_str(), t.format, t.shape.as_slice()))
            .collect();
        let expected: [(_, _, &[i64]); 3] = [
            ("first.weight", Format::Q8_0, &[2, 3, 64]),
            ("first.bias", Format::F32, &[5]),
            ("second.weight", Format::F16, &[3, 64]),
        ];
        assert_eq!(shapes, expected);
        let mut bias = [0.0; 5];
        Format::F32.unpack(&file[tensors[1].range.clone()], &mut bias);
        assert_eq!(bias, Fixture::open("quant.safetensors").floats("gguf.weights")[..5]);
    }

    #[test]
    fn what_is_wrong_is_said_with_its_name_and_what_to_do() {
        let version = |n: u32| [MAGIC, &n.to_le_bytes()[..]].concat();
        assert!(message(&version(3), &version(1)).contains("version 1, expected 2 or 3"));
        assert!(message(&version(3), &version(3_u32.swap_bytes())).contains("it is big-endian"));
        assert!(message(b"first.bias", b"first.bia\xff").contains("the name of a tensor is not UTF-8"));
        assert!(message(b"test.i8", b"test.u8").contains("metadata `test.u8` is there twice"));
        let described = |kind: u32| [&b"first.bias\x01\0\0\0\x05\0\0\0\0\0\0\0"[..], &kind.to_le_bytes()].concat();
        let error = message(&described(0), &described(16));
        assert!(
            error.contains("tensor `first.bias` is stored in IQ2_XXS, which is not read here"),
            "{error}"
        );
        assert!(message(&described(0), &described(2)).contains("has rows of 5, Q4_0 asks for a multiple of 32"));
        let sides = |n: u8, side: u8| [&b"first.bias"[..], &[n, 0, 0, 0, side]].concat();
        assert!(message(&sides(1, 5), &sides(5, 5)).contains("has 5 sides, expected 1 to 4"));
        assert!(message(&sides(1, 5), &sides(1, 0)).contains("has a side of 0, expected 1 to"));
    }

    #[test]
    fn tensors_with_one_name_or_shared_bytes_are_refused() {
        let file = file();
        let other = file.windows(13).position(|part| part == b"second.weight").unwrap();
        let mut twice = file[..other - 8].to_vec();
        twice.extend(12_u64.to_le_bytes());
        twice.extend(b"first.weight");
        // One byte shorter, so one more byte of padding, which is at the end of the header.
        twice.extend(&file[other + 13..other + 13 + 4 + 16 + 4 + 8]);
        twice.push(0);
        twice.extend(&file[twice.len()..]);
        assert!(
            read(&twice)
                .unwrap_err()
                .to_string()
                .contains("tensor `first.weight` is there twice")
        );
        let mut shared = file.clone();
        shared[other + 13 + 4 + 16 + 4..][..8].fill(0);
        assert!(
            read(&shared)
                .unwrap_err()
                .to_string()
                .contains("tensors `first.weight` and `second.weight` overlap")
        );
    }

    #[test]
    fn a_truncated_file_is_refused_wherever_it_ends() {
        let file = file();
        let end = read(&file)
            .unwrap()
            .tensors
            .iter()
            .map(|tensor| tensor.range.end)
            .max()
            .unwrap();
        for length in 0..end {
            assert!(read(&file[..length]).is_err(), "{length}");
        }
        assert!(read(&file[..end]).is_ok());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        #[test]
        fn a_mutated_file_is_refused_or_lies_within_its_bytes(
            changes in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..6),
            length in any::<proptest::sample::Index>(),
            cut in any::<bool>(),
        ) {
            let mut file = file();
            // The data after the header cannot be wrong.
            let header = read(&file).unwrap().tensors[0].range.start;
            for (at, byte) in changes {
                file[at.index(header)] = byte;
            }
            if cut {
                file.truncate(length.index(file.len()));
            }
            if let Ok(gguf) = read(&file) {
                for tensor in gguf.tensors {
                    let columns = *tensor.shape.last().unwrap();
                    let rows = tensor.shape.iter().product::<i64>() / columns;
                    prop_assert!(tensor.range.end <= file.len());
                    let bytes = rows as usize * tensor.format.row_bytes(columns as usize).unwrap();
                    prop_assert_eq!(tensor.range.len(), bytes);
                }
                for value in gguf.metadata.values() {
                    if let Value::Array(array) = value {
                        prop_assert_eq!(array.iter().count(), array.len());
                    }
                }
            }
        }
    }
}
