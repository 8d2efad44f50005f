//! Parsing and validation of a safetensors header: its length, then JSON.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::fmt;

use safetensors::tensor::{Metadata, TensorInfo};
use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, Visitor};

use kontext_core::CheckpointError;

/// Bytes of the length prefix, which holds the length of the JSON.
pub(super) const LENGTH: usize = 8;
/// Largest header in bytes, the format's own limit. FLUX.1's header has 0.1 MB.
const LONGEST: u64 = 100_000_000;
/// Longest side of a tensor, which no model exceeds; products of two such sides fit an i64.
const LONGEST_SIDE: usize = 1 << 31;

/// Signatures of files often found instead of weights, with their description and remedy.
const OTHERS: [(&[u8], &str, &str); 5] = [
    (
        b"version https://git-lfs",
        "a Git LFS pointer",
        "run `git lfs pull` in its folder",
    ),
    (
        b"PK\x03\x04",
        "a PyTorch or zip file",
        "take the safetensors of the model",
    ),
    // Protocol 2 of pickles, as PyTorch wrote them before its zip files.
    (b"\x80\x02", "a PyTorch pickle", "take the safetensors of the model"),
    (
        b"<",
        "a web page",
        "fetch the file again, signed in if the model asks for it",
    ),
    (
        b"{\"error",
        "a server's error message",
        "fetch the file again, signed in if the model asks for it",
    ),
];

/// The deserialised JSON.
struct Header {
    text: Option<HashMap<String, String>>,
    tensors: BTreeMap<String, TensorInfo>,
}

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Entries)
    }
}

/// A visitor that reads one tensor after the other. The implementation that safetensors derives first keeps
/// all of the JSON in a form of some fifty times its size.
struct Entries;

impl<'de> Visitor<'de> for Entries {
    type Value = Header;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
        let mut header = Header {
            text: None,
            tensors: BTreeMap::new(),
        };
        while let Some(name) = map.next_key::<String>()? {
            if name == "__metadata__" {
                header.text = map.next_value()?;
            } else {
                match header.tensors.entry(name) {
                    Entry::Vacant(place) => drop(place.insert(map.next_value()?)),
                    Entry::Occupied(place) => {
                        return Err(A::Error::custom(format_args!(
                            "tensor `{}` is there twice",
                            place.key()
                        )));
                    }
                }
            }
        }
        Ok(header)
    }
}

/// Reads the header of a file and returns it with the start of the data.
pub(super) fn read(file: &[u8]) -> Result<(Metadata, usize), CheckpointError> {
    let bad = |reason: String| CheckpointError::Header { reason };
    let size = file.len();
    let Some((length, rest)) = file.split_first_chunk::<LENGTH>() else {
        return Err(bad(format!("it has {size} bytes, fewer than a header")));
    };
    let length = u64::from_le_bytes(*length);
    if length > LONGEST {
        // Only here, because a valid length may begin with any byte.
        if let Some((_, found, remedy)) = OTHERS.iter().find(|(sign, ..)| file.starts_with(sign)) {
            return Err(CheckpointError::Format { found, remedy });
        }
        return Err(bad(format!(
            "its header would have {length} bytes, the most is {LONGEST}"
        )));
    }
    let json = usize::try_from(length).ok().and_then(|length| rest.get(..length));
    let json = json.ok_or_else(|| bad(format!("its header would have {length} bytes, the file has {size}")))?;
    let wrong = |error: &dyn fmt::Display| bad(format!("its header is wrong: {error}"));
    // Not `SafeTensors::read_metadata`: its last sum overflows on offsets near 2^64.
    let Header { text, tensors } = serde_json::from_slice(json).map_err(|e| wrong(&e))?;
    let mut tensors: Vec<(String, TensorInfo)> = tensors.into_iter().collect();
    tensors
        .iter()
        .try_for_each(|(name, info)| check(name, info))
        .map_err(bad)?;
    tensors.sort_by_key(|(_, info)| info.data_offsets);
    let metadata = Metadata::new(text, tensors).map_err(|e| wrong(&e))?;
    let start = LENGTH + json.len();
    let end = start.saturating_add(metadata.data_len());
    if end != size {
        return Err(bad(format!("its header describes {end} bytes, the file has {size}")));
    }
    Ok((metadata, start))
}

/// Checks that a tensor has a usable shape that matches its number of bytes.
fn check(name: &str, info: &TensorInfo) -> Result<(), String> {
    let TensorInfo {
        dtype,
        shape,
        data_offsets: (start, end),
    } = info;
    // Empty sides count as one, as they do in strides: that product has to fit an i64, too.
    let strides = shape.iter().try_fold(1_i64, |product, &side| {
        product.checked_mul(i64::try_from(side.max(1)).ok()?)
    });
    if strides.is_none() || shape.iter().any(|&side| side > LONGEST_SIDE) {
        let most = format!("at most {LONGEST_SIDE} a side and 2^63 in all");
        return Err(format!("tensor `{name}` has shape {shape:?}, expected {most}"));
    }
    let bits = shape.iter().product::<usize>().checked_mul(dtype.bitsize());
    match (bits, end.checked_sub(*start)) {
        (Some(bits), Some(bytes)) if bits.is_multiple_of(8) && bits / 8 == bytes => Ok(()),
        _ => Err(format!(
            "tensor `{name}` of {dtype} has shape {shape:?}, which does not fit its bytes {start}..{end}"
        )),
    }
}
