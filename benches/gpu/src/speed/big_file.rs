//! Model files of any size with random packed weights, written as fast as memory goes.
//!
//! Drawing and packing 17 G parameters takes minutes. Here bytes of one random pool become blocks of the format, each
//! tensor from a place of its own, with factors that give its values the deviation of trained ones.

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use anyhow::Context;
use kontext::{Device, Dit, Kind, ModelSizes, Weights, save_part};
use kontext_core::quant::Format;
use kontext_core::weights::{StreamedTensor, Value, save_streamed, write_gguf};
use kontext_text::{ClipEncoder, T5Encoder};
use kontext_vae::AutoencoderKl;
use tempfile::TempDir;

/// Bytes of the pool: more than a processor's caches.
const POOL: usize = 64 << 20;
/// Two tensors of one size begin this far from each other in the pool: a prime.
const STRIDE: usize = 7_368_787;
/// Standard deviation of the whole numbers from -8 to 7, all alike probable.
const DEVIATION: f32 = 4.61;
/// What the files of the published size take, with some to spare.
const ROOM: u64 = 28_000_000_000;

/// How the transformer's blocks are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stored {
    /// GGUF's 4 bits, in a .gguf file.
    Q4_0,
    /// 8-bit floats with a factor for each layer, as ComfyUI has them.
    Fp8,
}

/// The files, each written when it is first wanted.
pub(super) struct Files {
    pub(super) device: Device,
    sizes: ModelSizes,
    scratch: Option<PathBuf>,
    written: RefCell<Option<Rc<TempDir>>>,
}

impl Files {
    pub(super) fn new(device: Device, scratch: Option<PathBuf>, published: bool) -> Self {
        let sizes = if published { ModelSizes::published() } else { ModelSizes::small() };
        Self { device, sizes, scratch, written: RefCell::new(None) }
    }

    /// Folder of a model without its transformer, and the transformer's file.
    pub(super) fn model(&self, stored: Stored) -> anyhow::Result<(PathBuf, PathBuf)> {
        let folder = self.folder()?;
        let model = folder.path().join("model");
        let path = folder.path().join(match stored {
            Stored::Q4_0 => "transformer.gguf",
            Stored::Fp8 => "transformer.safetensors",
        });
        if !path.exists() {
            write_transformer(&self.sizes, stored, &path).context("writing the transformer")?;
        }
        Ok((model, path))
    }

    fn folder(&self) -> anyhow::Result<Rc<TempDir>> {
        if let Some(folder) = self.written.borrow().as_ref() {
            return Ok(Rc::clone(folder));
        }
        let folder = match &self.scratch {
            Some(scratch) => TempDir::new_in(scratch)?,
            None => in_memory().map_or_else(TempDir::new, TempDir::new_in)?,
        };
        write_rest(&self.sizes, &folder.path().join("model")).context("writing the other parts")?;
        let folder = Rc::new(folder);
        *self.written.borrow_mut() = Some(Rc::clone(&folder));
        Ok(folder)
    }
}

/// The system's folder in memory, if it has room.
fn in_memory() -> Option<PathBuf> {
    let output = std::process::Command::new("df").args(["--output=avail", "-B1", "/dev/shm"]).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let free: u64 = text.lines().nth(1)?.trim().parse().ok()?;
    (free > ROOM).then(|| PathBuf::from("/dev/shm"))
}

/// Random bytes.
fn pool() -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut pool = Vec::with_capacity(POOL);
    while pool.len() < POOL {
        // xorshift64*
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        pool.extend(state.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes());
    }
    pool
}

/// `count` bytes of the pool from a tensor's own place on, which wraps around.
fn cut(pool: &[u8], index: usize, count: usize) -> Vec<u8> {
    let start = (index * STRIDE) % pool.len();
    let mut bytes = Vec::with_capacity(count);
    bytes.extend(pool[start..].iter().take(count));
    while bytes.len() < count {
        let rest = count - bytes.len();
        bytes.extend(&pool[..rest.min(pool.len())]);
    }
    bytes
}

/// Blocks of Q4_0: an f16 factor and 16 bytes of two elements each.
fn q4_0(pool: &[u8], index: usize, count: usize, inputs: usize) -> Vec<u8> {
    let factor = half_bits(1.0 / (DEVIATION * (inputs as f32).sqrt()));
    let mut bytes = cut(pool, index, count / Format::Q4_0.block() * Format::Q4_0.bytes());
    for block in bytes.chunks_exact_mut(Format::Q4_0.bytes()) {
        block[..2].copy_from_slice(&factor);
    }
    bytes
}

/// The f16 of a value, as the packed formats have their factors.
fn half_bits(value: f32) -> [u8; 2] {
    half::f16::from_f32(value).to_le_bytes()
}

/// The whole numbers from -8 to 7 as e4m3, which has them all.
fn e4m3(pool: &[u8], index: usize, count: usize) -> Vec<u8> {
    const NUMBERS: [u8; 16] =
        [0xd0, 0xce, 0xcc, 0xca, 0xc8, 0xc4, 0xc0, 0xb8, 0x00, 0x38, 0x40, 0x44, 0x48, 0x4a, 0x4c, 0x4e];
    let mut bytes = cut(pool, index, count);
    for byte in &mut bytes {
        *byte = NUMBERS[usize::from(*byte & 15)];
    }
    bytes
}

/// bf16 or f32 of a vector or a matrix that is not packed: those of [`Weights::synthetic`].
fn plain(weights: &Weights, name: &str, shape: &[i64], format: Format) -> kontext::Result<Vec<u8>> {
    let values = kontext_core::array::to_vec(&weights.tensor(name, shape)?)?;
    Ok(match format {
        Format::Bf16 => values.iter().flat_map(|value| half::bf16::from_f32(*value).to_le_bytes()).collect(),
        _ => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
    })
}

/// A model's tensors: those that `is_packed` names in the format, and the others plain.
fn tensors<'a>(
    shapes: Vec<(String, Vec<i64>)>,
    pool: &'a [u8],
    weights: &'a Weights,
    stored: Stored,
    is_packed: impl Fn(&str, &[i64]) -> bool,
) -> Vec<StreamedTensor<'a>> {
    let mut tensors = Vec::new();
    for (index, (name, shape)) in shapes.into_iter().enumerate() {
        let sides: Vec<usize> = shape.iter().map(|side| side.unsigned_abs() as usize).collect();
        let (count, inputs) = (sides.iter().product::<usize>(), sides.last().copied().unwrap_or(1));
        if !is_packed(&name, &shape) {
            let format = if sides.len() > 1 { Format::Bf16 } else { Format::F32 };
            let own = name.clone();
            tensors.push(StreamedTensor::new(name, format, &sides, move || {
                Ok(Cow::Owned(plain(weights, &own, &shape, format)?))
            }));
            continue;
        }
        match stored {
            Stored::Q4_0 => {
                let data = move || Ok(Cow::Owned(q4_0(pool, index, count, inputs)));
                tensors.push(StreamedTensor::new(name, Format::Q4_0, &sides, data));
            }
            Stored::Fp8 => {
                let factor = 1.0 / (DEVIATION * (inputs as f32).sqrt());
                let beside = format!("{}.scale_weight", name.trim_end_matches(".weight"));
                tensors.push(StreamedTensor::new(name, Format::F8E4M3, &sides, move || {
                    Ok(Cow::Owned(e4m3(pool, index, count)))
                }));
                tensors.push(StreamedTensor::new(beside, Format::F32, &[], move || {
                    Ok(Cow::Owned(factor.to_le_bytes().to_vec()))
                }));
            }
        }
    }
    if stored == Stored::Fp8 {
        tensors.push(StreamedTensor::new("scaled_fp8", Format::F8E4M3, &[0], || Ok(Cow::Borrowed(&[]))));
    }
    tensors
}

fn write_transformer(sizes: &ModelSizes, stored: Stored, path: &Path) -> anyhow::Result<()> {
    let blank = Weights::blank();
    Dit::new(&blank, &sizes.dit, |_| ())?;
    let (pool, weights) = (pool(), Weights::synthetic(1));
    let block = |name: &str, shape: &[i64]| name.contains("_blocks.") && shape.len() == 2;
    let tensors = tensors(blank.shapes().into_iter().collect(), &pool, &weights, stored, block);
    match stored {
        Stored::Q4_0 => write_gguf(path, &[("general.architecture", Value::Text("flux".to_owned()))], tensors)?,
        Stored::Fp8 => save_streamed(path, HashMap::new(), tensors)?,
    }
    Ok(())
}

/// The other parts: T5 in scaled fp8, CLIP and the autoencoder in f32, tokenizers that read letter by letter.
fn write_rest(sizes: &ModelSizes, folder: &Path) -> anyhow::Result<()> {
    kontext::random_model(folder, 1, kontext::Layout::Diffusers)?;
    let made = |build: &dyn Fn(&Weights) -> kontext::Result<()>| -> anyhow::Result<Vec<(String, kontext::Tensor)>> {
        let (blank, weights) = (Weights::blank(), Weights::synthetic(2));
        build(&blank)?;
        let draw = |(name, shape): (String, Vec<i64>)| Ok((name.clone(), weights.tensor(&name, &shape)?));
        Ok(blank.shapes().into_iter().map(draw).collect::<kontext::Result<_>>()?)
    };
    save_part::clip(folder, &made(&|w| ClipEncoder::new(w, &sizes.clip, Kind::Float).map(drop))?, &sizes.clip)?;
    save_part::vae(folder, &made(&|w| AutoencoderKl::new(w, &sizes.vae).map(drop))?, &sizes.vae)?;
    // A blank T5 for its configuration; then its weights.
    save_part::t5(folder, &[], &sizes.t5)?;
    let blank = Weights::blank();
    T5Encoder::new(&blank, &sizes.t5, Kind::Float)?;
    let (pool, weights) = (pool(), Weights::synthetic(3));
    let inner = |name: &str, shape: &[i64]| {
        name.starts_with("encoder.block.") && shape.len() == 2 && !name.contains("relative_attention_bias")
    };
    let tensors = tensors(blank.shapes().into_iter().collect(), &pool, &weights, Stored::Fp8, inner);
    save_streamed(folder.join("text_encoder_2/model.safetensors"), HashMap::new(), tensors)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whatever the format, the values' deviation is that of trained weights: the root of one over the inputs.
    #[test]
    fn both_formats_have_the_deviation_of_their_width() {
        let files = Files::new(Device::Cpu, None, false);
        for stored in [Stored::Q4_0, Stored::Fp8] {
            let (model, transformer) = files.model(stored).expect("written");
            assert!(model.join("text_encoder_2/model.safetensors").is_file());
            let weights = Weights::open(&transformer).expect("opened").kind(Kind::Float);
            let name = "single_blocks.0.linear1.weight";
            let shape = weights.shape_of(name).expect("there");
            let weight = weights.tensor(name, &shape).expect("read");
            let deviation = weight.std(true).double_value(&[]) * (shape[1] as f64).sqrt();
            assert!((deviation - 1.0).abs() < 0.02, "{stored:?}: {deviation}");
        }
    }
}
