//! The beginning of a safetensors file, checked: its length, then JSON.

use safetensors::tensor::{Metadata, TensorInfo};

use crate::CheckpointError;

/// Bytes of the number that a file begins with: the length of its JSON.
const LENGTH: usize = 8;
/// The format's own limit. FLUX.1's header has 0.1 MB.
const LONGEST: u64 = 100_000_000;
/// No model has a longer side; products of two of them fit an i64.
const LONGEST_SIDE: usize = 1 << 31;

/// Beginnings of files that are often found in place of weights, what they are, and what to do.
const OTHERS: [(&[u8], &str, &str); 4] = [
    (b"version https://git-lfs", "a Git LFS pointer", "run `git lfs pull` in its folder"),
    (b"PK\x03\x04", "a PyTorch or zip file", "take the safetensors of the model"),
    (b"<", "a web page", "fetch the file again, signed in if the model asks for it"),
    (b"{\"error", "a server's error message", "fetch the file again, signed in if the model asks for it"),
];

/// Reads the header of a file, and tells where its data starts.
pub(super) fn read(file: &[u8]) -> Result<(Metadata, usize), CheckpointError> {
    let bad = |reason: String| CheckpointError::Header { reason };
    let size = file.len();
    let Some((length, rest)) = file.split_first_chunk::<LENGTH>() else {
        return Err(bad(format!("it has {size} bytes, fewer than a header")));
    };
    let length = u64::from_le_bytes(*length);
    if length > LONGEST {
        // Here alone, because a length may begin with any byte.
        if let Some((_, found, remedy)) = OTHERS.iter().find(|(sign, ..)| file.starts_with(sign)) {
            return Err(CheckpointError::Format { found, remedy });
        }
        return Err(bad(format!("its header would have {length} bytes, the most is {LONGEST}")));
    }
    let json = usize::try_from(length).ok().and_then(|length| rest.get(..length));
    let json = json.ok_or_else(|| bad(format!("its header would have {length} bytes, the file has {size}")))?;
    // Not `SafeTensors::read_metadata`: its last sum overflows on offsets near 2^64.
    let metadata: Metadata = serde_json::from_slice(json).map_err(|e| bad(format!("its header is wrong: {e}")))?;
    for (name, TensorInfo { shape, .. }) in metadata.tensors() {
        if shape.iter().any(|&side| side > LONGEST_SIDE) || strides(shape).is_none() {
            let most = format!("at most {LONGEST_SIDE} a side and 2^63 in all");
            return Err(bad(format!("tensor `{name}` has shape {shape:?}, expected {most}")));
        }
    }
    let start = LENGTH + json.len();
    let end = start.saturating_add(metadata.data_len());
    if end != size {
        return Err(bad(format!("its header describes {end} bytes, the file has {size}")));
    }
    Ok((metadata, start))
}

/// The product of the sides as strides have it, where an empty side counts as one: it must fit an i64 even where the
/// tensor has no elements.
fn strides(shape: &[usize]) -> Option<i64> {
    shape.iter().try_fold(1_i64, |product, &side| product.checked_mul(i64::try_from(side.max(1)).ok()?))
}
