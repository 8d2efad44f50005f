//! The text in the header of a safetensors file, in the order of its keys: a hash map's order differs from run
//! to run, and with it the bytes of a file.

use std::collections::{BTreeMap, HashMap};

/// Alignment of the start of the data, in bytes.
const ALIGNMENT: usize = 8;
/// Bytes of the header's length.
const LENGTH: usize = 8;

/// Inserts text into the header of a serialised file that has none.
pub(crate) fn insert(file: &mut Vec<u8>, text: &HashMap<String, String>) {
    let Some((length, _)) = file.split_first_chunk::<LENGTH>() else {
        return;
    };
    let end = LENGTH + u64::from_le_bytes(*length) as usize;
    let Some(tensors) = file.get(LENGTH + 1..end) else {
        return;
    };
    let sorted: BTreeMap<_, _> = text.iter().collect();
    let comma = if tensors.trim_ascii() == b"}" { "" } else { "," };
    let mut header = format!("{{\"__metadata__\":{}{comma}", serde_json::json!(sorted)).into_bytes();
    header.extend(tensors.trim_ascii_end());
    header.resize(header.len().next_multiple_of(ALIGNMENT), b' ');
    let length = (header.len() as u64).to_le_bytes();
    file.splice(..end, length.into_iter().chain(header));
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use safetensors::SafeTensors;
    use tch::Tensor;

    use super::*;
    use crate::to_bytes;

    #[test]
    fn the_same_text_gives_the_same_bytes() {
        let text =
            || -> HashMap<String, String> { (0..20).map(|n| (format!("key {n}"), format!("\"{n}\""))).collect() };
        let tensors = [("a".to_owned(), Tensor::from_slice(&[1.0_f32, 2.0]))];
        for tensors in [&tensors[..], &[]] {
            let write = |text| to_bytes(Path::new("a"), tensors, text).unwrap();
            let file = write(Some(text()));
            for _ in 0..4 {
                assert!(write(Some(text())) == file);
            }
            let (_, header) = SafeTensors::read_metadata(&file).unwrap();
            assert_eq!(header.metadata().as_ref().unwrap(), &text());
            let (read, plain) = (SafeTensors::deserialize(&file).unwrap(), write(None));
            let plain = SafeTensors::deserialize(&plain).unwrap();
            assert_eq!(read.tensors(), plain.tensors());
        }
    }
}
