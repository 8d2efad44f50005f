//! What gguf-py, torch and bitsandbytes compute, for tests: `tests/reference/parts/quant.py`.

use safetensors::{Dtype, SafeTensors};

/// The fixture's bytes.
pub(crate) struct Fixture(Vec<u8>);

impl Fixture {
    pub(crate) fn open() -> Self {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/reference/quant.safetensors");
        Self(std::fs::read(path).unwrap())
    }

    fn data(&self, name: &str, dtype: Dtype) -> Vec<u8> {
        let tensors = SafeTensors::deserialize(&self.0).unwrap();
        let tensor = tensors.tensor(name).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(tensor.dtype(), dtype, "{name}");
        tensor.data().to_vec()
    }

    pub(crate) fn bytes(&self, name: &str) -> Vec<u8> {
        self.data(name, Dtype::U8)
    }

    pub(crate) fn floats(&self, name: &str) -> Vec<f32> {
        self.data(name, Dtype::F32)
            .as_chunks()
            .0
            .iter()
            .map(|b| f32::from_le_bytes(*b))
            .collect()
    }

    /// Floats of any bits, as integers.
    pub(crate) fn words(&self, name: &str) -> Vec<u32> {
        self.data(name, Dtype::I32)
            .as_chunks()
            .0
            .iter()
            .map(|b| u32::from_le_bytes(*b))
            .collect()
    }
}
