//! The header of a safetensors file as it is written: its length, then JSON with the text in the order of its
//! keys. A hash map's order differs from run to run, and with it the bytes of a file.

use std::collections::{BTreeMap, HashMap};

use kontext_core::{Error, Result};
use safetensors::tensor::TensorInfo;
use serde::ser::{Serialize, SerializeMap, Serializer};

use super::header::LENGTH;
use super::names::RESERVED;

/// Alignment of the start of the data, in bytes.
const ALIGNMENT: usize = 8;

/// The JSON: the text, then the tensors in the order of their data.
struct Json<'a> {
    text: Option<BTreeMap<String, String>>,
    tensors: &'a [(String, TensorInfo)],
}

impl Serialize for Json<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        if let Some(text) = &self.text {
            map.serialize_entry(RESERVED, text)?;
        }
        for (name, info) in self.tensors {
            map.serialize_entry(name, info)?;
        }
        map.end()
    }
}

/// Returns the bytes before the data of tensors, which lie in this order and without gaps.
pub(crate) fn bytes(text: Option<HashMap<String, String>>, tensors: &[(String, TensorInfo)]) -> Result<Vec<u8>> {
    let text = text.map(|text| text.into_iter().collect());
    let json = serde_json::to_vec(&Json { text, tensors });
    let mut json = json.map_err(|error| Error::bug(format!("a header without a form in JSON: {error}")))?;
    json.resize(json.len().next_multiple_of(ALIGNMENT), b' ');
    let mut bytes = Vec::with_capacity(LENGTH + json.len());
    bytes.extend((json.len() as u64).to_le_bytes());
    bytes.extend(json);
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use safetensors::SafeTensors;
    use safetensors::tensor::{Dtype, TensorView};
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
            // Without text, the bytes are those of the safetensors crate.
            let views = tensors.iter().map(|(name, _)| {
                let data = [0, 0, 128, 63, 0, 0, 0, 64].as_slice();
                (name, TensorView::new(Dtype::F32, vec![2], data).unwrap())
            });
            assert_eq!(write(None), safetensors::serialize(views, None).unwrap());
            let (read, plain) = (SafeTensors::deserialize(&file).unwrap(), write(None));
            let plain = SafeTensors::deserialize(&plain).unwrap();
            assert_eq!(read.tensors(), plain.tensors());
        }
    }
}
