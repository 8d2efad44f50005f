//! Metadata values of a GGUF file, and the cursor that reads them from untrusted bytes.
//!
//! Source: ggml-org/ggml `docs/gguf.md`, `gguf_metadata_value_t`.

use kontext_core::CheckpointError;

/// A metadata value, in its type in the file.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// Unsigned 8-bit integer.
    U8(u8),
    /// Signed 8-bit integer.
    I8(i8),
    /// Unsigned 16-bit integer.
    U16(u16),
    /// Signed 16-bit integer.
    I16(i16),
    /// Unsigned 32-bit integer.
    U32(u32),
    /// Signed 32-bit integer.
    I32(i32),
    /// 32-bit float.
    F32(f32),
    /// Boolean.
    Bool(bool),
    /// String.
    Text(String),
    /// Array of values of one type.
    Array(Array),
    /// Unsigned 64-bit integer.
    U64(u64),
    /// Signed 64-bit integer.
    I64(i64),
    /// 64-bit float.
    F64(f64),
}

/// Type number of a string.
const TEXT: u32 = 8;
/// Type number of an array.
const ARRAY: u32 = 9;

/// An array of values of one type, which are not arrays themselves. It keeps the encoding of the file, so
/// that a file takes no more memory than it has bytes.
#[derive(Debug, Clone, PartialEq)]
pub struct Array {
    kind: u32,
    count: usize,
    bytes: Vec<u8>,
}

impl Array {
    /// Creates an array; `None` if `values` is empty, of more than one type, or of arrays.
    #[must_use]
    pub fn new(values: &[Value]) -> Option<Self> {
        let kind = values.first()?.kind();
        if kind == ARRAY || values.iter().any(|value| value.kind() != kind) {
            return None;
        }
        let mut bytes = Vec::new();
        values.iter().for_each(|value| value.write(&mut bytes));
        Some(Self {
            kind,
            count: values.len(),
            bytes,
        })
    }

    /// Returns the number of values.
    #[must_use]
    pub fn len(&self) -> usize {
        self.count
    }

    /// Returns `true` if there are no values.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Iterates over the values.
    pub fn iter(&self) -> impl Iterator<Item = Value> + '_ {
        let mut cursor = Cursor::new(&self.bytes);
        // The bytes were checked before: no value is missing.
        (0..self.count).map_while(move |_| Value::read(&mut cursor, self.kind, "array").ok())
    }
}

impl Value {
    /// Returns a non-negative integer of any width.
    #[must_use]
    pub fn as_u64(&self) -> Option<u64> {
        match *self {
            Value::U8(n) => Some(n.into()),
            Value::U16(n) => Some(n.into()),
            Value::U32(n) => Some(n.into()),
            Value::U64(n) => Some(n),
            Value::I8(n) => n.try_into().ok(),
            Value::I16(n) => n.try_into().ok(),
            Value::I32(n) => n.try_into().ok(),
            Value::I64(n) => n.try_into().ok(),
            _ => None,
        }
    }

    /// Returns the text, if it is a string.
    #[must_use]
    pub fn text(self) -> Option<String> {
        match self {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    /// Returns the type number.
    fn kind(&self) -> u32 {
        match self {
            Value::U8(_) => 0,
            Value::I8(_) => 1,
            Value::U16(_) => 2,
            Value::I16(_) => 3,
            Value::U32(_) => 4,
            Value::I32(_) => 5,
            Value::F32(_) => 6,
            Value::Bool(_) => 7,
            Value::Text(_) => TEXT,
            Value::Array(_) => ARRAY,
            Value::U64(_) => 10,
            Value::I64(_) => 11,
            Value::F64(_) => 12,
        }
    }

    /// Writes the type number and then the value.
    pub(super) fn write_typed(&self, out: &mut Vec<u8>) {
        out.extend(self.kind().to_le_bytes());
        self.write(out);
    }

    fn write(&self, out: &mut Vec<u8>) {
        match self {
            Value::U8(n) => out.push(*n),
            Value::I8(n) => out.extend(n.to_le_bytes()),
            Value::U16(n) => out.extend(n.to_le_bytes()),
            Value::I16(n) => out.extend(n.to_le_bytes()),
            Value::U32(n) => out.extend(n.to_le_bytes()),
            Value::I32(n) => out.extend(n.to_le_bytes()),
            Value::F32(x) => out.extend(x.to_le_bytes()),
            Value::Bool(yes) => out.push((*yes).into()),
            Value::Text(text) => write_text(text, out),
            Value::Array(Array { kind, count, bytes }) => {
                out.extend(kind.to_le_bytes());
                out.extend((*count as u64).to_le_bytes());
                out.extend(bytes);
            }
            Value::U64(n) => out.extend(n.to_le_bytes()),
            Value::I64(n) => out.extend(n.to_le_bytes()),
            Value::F64(x) => out.extend(x.to_le_bytes()),
        }
    }

    /// Reads a value of the type with this number; `what` names it in errors.
    pub(super) fn read(cursor: &mut Cursor<'_>, kind: u32, what: &str) -> Result<Self, CheckpointError> {
        Ok(match kind {
            0 => Value::U8(u8::from_le_bytes(cursor.array(what)?)),
            1 => Value::I8(i8::from_le_bytes(cursor.array(what)?)),
            2 => Value::U16(u16::from_le_bytes(cursor.array(what)?)),
            3 => Value::I16(i16::from_le_bytes(cursor.array(what)?)),
            4 => Value::U32(cursor.u32(what)?),
            5 => Value::I32(i32::from_le_bytes(cursor.array(what)?)),
            6 => Value::F32(f32::from_le_bytes(cursor.array(what)?)),
            7 => Value::Bool(cursor.array::<1>(what)? != [0]),
            TEXT => Value::Text(cursor.text(what)?.to_owned()),
            ARRAY => Value::Array(read_array(cursor, what)?),
            10 => Value::U64(cursor.u64(what)?),
            11 => Value::I64(i64::from_le_bytes(cursor.array(what)?)),
            12 => Value::F64(f64::from_le_bytes(cursor.array(what)?)),
            other => return Err(bad(format!("{what} has the type {other}, expected 0 to 12; {AGAIN}"))),
        })
    }
}

fn read_array(cursor: &mut Cursor<'_>, what: &str) -> Result<Array, CheckpointError> {
    let kind = cursor.u32(what)?;
    let count = cursor.u64(what)?;
    let width = match kind {
        0 | 1 | 7 => 1,
        2 | 3 => 2,
        4..=6 => 4,
        10..=12 => 8,
        TEXT => {
            let start = cursor.rest;
            // Each takes at least 8 bytes, so a false count ends with the file.
            for _ in 0..count {
                cursor.text(what)?;
            }
            let read = start.len() - cursor.rest.len();
            return Ok(Array {
                kind,
                count: count as usize,
                bytes: start[..read].to_vec(),
            });
        }
        ARRAY => {
            return Err(bad(format!(
                "{what} is an array of arrays, expected numbers or texts; {AGAIN}"
            )));
        }
        other => {
            return Err(bad(format!(
                "{what} has elements of the type {other}, expected 0 to 12; {AGAIN}"
            )));
        }
    };
    let bytes = cursor.take(count.saturating_mul(width), what)?;
    Ok(Array {
        kind,
        count: bytes.len() / width as usize,
        bytes: bytes.to_vec(),
    })
}

/// Writes a string in GGUF's encoding: its length, then its bytes.
pub(super) fn write_text(text: &str, out: &mut Vec<u8>) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

/// Remedy for a malformed file.
pub(super) const AGAIN: &str = "the file is truncated or damaged, fetch it again";

pub(super) fn bad(reason: String) -> CheckpointError {
    CheckpointError::Gguf { reason }
}

/// A cursor over the rest of a file. It allocates nothing, and each error names the item read.
#[derive(Debug, Clone)]
pub(super) struct Cursor<'a> {
    rest: &'a [u8],
}

impl<'a> Cursor<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// Returns the number of bytes left.
    pub(super) fn left(&self) -> usize {
        self.rest.len()
    }

    fn take(&mut self, count: u64, what: &str) -> Result<&'a [u8], CheckpointError> {
        let parts = usize::try_from(count)
            .ok()
            .and_then(|count| self.rest.split_at_checked(count));
        let Some((taken, rest)) = parts else {
            return Err(bad(format!(
                "{what} would take {count} bytes, {} are left; {AGAIN}",
                self.left()
            )));
        };
        self.rest = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N], CheckpointError> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N as u64, what)?);
        Ok(out)
    }

    pub(super) fn u32(&mut self, what: &str) -> Result<u32, CheckpointError> {
        self.array(what).map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self, what: &str) -> Result<u64, CheckpointError> {
        self.array(what).map(u64::from_le_bytes)
    }

    pub(super) fn text(&mut self, what: &str) -> Result<&'a str, CheckpointError> {
        let length = self.u64(what)?;
        let bytes = self.take(length, what)?;
        std::str::from_utf8(bytes).map_err(|_| bad(format!("{what} is not UTF-8; {AGAIN}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_array_holds_values_of_one_type() {
        let words = [Value::Text("a".to_owned()), Value::Text(String::new())];
        let array = Array::new(&words).unwrap();
        assert_eq!((array.len(), array.iter().collect::<Vec<_>>()), (2, words.to_vec()));
        assert_eq!(Array::new(&[]), None);
        assert_eq!(Array::new(&[Value::U8(1), Value::I8(1)]), None);
        assert_eq!(Array::new(&[Value::Array(array)]), None);
    }

    #[test]
    fn a_count_that_lies_ends_with_the_file() {
        for kind in [0_u32, 8, 12] {
            let mut bytes = kind.to_le_bytes().to_vec();
            bytes.extend(u64::MAX.to_le_bytes());
            bytes.extend([0; 32]);
            let error = Value::read(&mut Cursor::new(&bytes), ARRAY, "`key`")
                .unwrap_err()
                .to_string();
            assert!(error.contains("`key` would take"), "{error}");
        }
    }

    #[test]
    fn an_array_of_arrays_is_refused() {
        let bytes = [9_u32.to_le_bytes(); 8].concat();
        let error = Value::read(&mut Cursor::new(&bytes), ARRAY, "`key`")
            .unwrap_err()
            .to_string();
        assert!(error.contains("`key` is an array of arrays"), "{error}");
    }
}
