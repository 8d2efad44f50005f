//! Model files of any size with random packed weights, written at memory speed.
//!
//! Drawing and packing 17 G parameters takes minutes. Here the bytes of one random pool become blocks of the
//! format, each tensor from a different offset, with scales that give the values the standard deviation of
//! trained ones.

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use anyhow::Context;
use kontext::{Device, Dit, Kind, ModelSizes, Tensor, Weights, save_part};
use kontext_core::noise;
use kontext_formats::quant::{Format, pack};
use kontext_formats::{StreamedTensor, Value, save_streamed, write_gguf};
use kontext_text::{ClipEncoder, T5Encoder};
use kontext_vae::AutoencoderKl;
use tempfile::TempDir;

use super::shared::Scale;

/// Size of the pool in bytes: larger than a processor's caches.
const POOL: usize = 64 << 20;
/// Offset between consecutive tensors in the pool, a prime.
const STRIDE: usize = 7_368_787;
/// Standard deviation of the integers from -8 to 7, uniformly distributed.
const DEVIATION: f32 = 4.61;

/// Storage format of the transformer's blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stored {
    /// GGUF's 4-bit format, in a .gguf file.
    Q4_0,
    /// 8-bit floats with a scale per layer, as in ComfyUI.
    Fp8,
}

/// Model files, written on first use.
pub(super) struct Files {
    pub(super) device: Device,
    pub(super) scale: Scale,
    written: RefCell<Option<Rc<TempDir>>>,
}

impl Files {
    pub(super) fn new(device: Device, scale: Scale) -> Self {
        Self {
            device,
            scale,
            written: RefCell::new(None),
        }
    }

    /// Returns the folder of a model without its transformer, and the transformer's file.
    pub(super) fn model(&self, stored: Stored) -> anyhow::Result<(PathBuf, PathBuf)> {
        let folder = self.folder()?;
        let model = folder.path().join("model");
        let path = folder.path().join(match stored {
            Stored::Q4_0 => "transformer.gguf",
            Stored::Fp8 => "transformer.safetensors",
        });
        if !path.exists() {
            write_transformer(&self.scale.sizes, stored, &path).context("writing the transformer")?;
        }
        Ok((model, path))
    }

    fn folder(&self) -> anyhow::Result<Rc<TempDir>> {
        if let Some(folder) = self.written.borrow().as_ref() {
            return Ok(Rc::clone(folder));
        }
        let folder = TempDir::new()?;
        write_rest(&self.scale.sizes, &folder.path().join("model")).context("writing the other parts")?;
        let folder = Rc::new(folder);
        *self.written.borrow_mut() = Some(Rc::clone(&folder));
        Ok(folder)
    }
}

/// Byte pools for the tensors' data: one for each width of Q4_0, whose blocks contain a scale, and one for
/// all of fp8.
#[derive(Default)]
struct Pools(RefCell<HashMap<usize, Rc<Vec<u8>>>>);

impl Pools {
    /// Returns a tensor's bytes, from an offset given by `index`; the pool is read cyclically.
    fn cut(&self, stored: Stored, index: usize, count: usize, inputs: usize) -> Vec<u8> {
        let (block, key) = match stored {
            Stored::Q4_0 => (Format::Q4_0.bytes(), inputs),
            Stored::Fp8 => (1, 0),
        };
        let pool = Rc::clone(
            self.0
                .borrow_mut()
                .entry(key)
                .or_insert_with(|| Rc::new(pool(stored, inputs))),
        );
        let wanted = match stored {
            Stored::Q4_0 => count / Format::Q4_0.block() * block,
            Stored::Fp8 => count,
        };
        let start = (index * STRIDE) % (pool.len() / block) * block;
        let mut bytes = Vec::with_capacity(wanted);
        bytes.extend_from_slice(&pool[start..pool.len().min(start + wanted)]);
        while bytes.len() < wanted {
            let rest = wanted - bytes.len();
            bytes.extend_from_slice(&pool[..rest.min(pool.len())]);
        }
        bytes
    }
}

/// Fills a pool with random bytes that are valid in the format.
fn pool(stored: Stored, inputs: usize) -> Vec<u8> {
    /// The integers from -8 to 7 in e4m3, which represents them exactly.
    const NUMBERS: [u8; 16] = [
        0xd0, 0xce, 0xcc, 0xca, 0xc8, 0xc4, 0xc0, 0xb8, 0x00, 0x38, 0x40, 0x44, 0x48, 0x4a, 0x4c, 0x4e,
    ];
    let mut bytes = random(POOL);
    match stored {
        Stored::Q4_0 => {
            let factor = half::f16::from_f32(factor(inputs)).to_le_bytes();
            bytes
                .chunks_exact_mut(Format::Q4_0.bytes())
                .for_each(|block| block[..2].copy_from_slice(&factor));
            // Only whole blocks.
            bytes.truncate(POOL / Format::Q4_0.bytes() * Format::Q4_0.bytes());
        }
        Stored::Fp8 => bytes
            .iter_mut()
            .for_each(|byte| *byte = NUMBERS[usize::from(*byte & 15)]),
    }
    bytes
}

/// Returns the scale of a row's integers.
fn factor(inputs: usize) -> f32 {
    1.0 / (DEVIATION * (inputs as f32).sqrt())
}

/// Draws random bytes with the generator xorshift64*.
fn random(count: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::with_capacity(count + 8);
    while bytes.len() < count {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        bytes.extend(state.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes());
    }
    bytes.truncate(count);
    bytes
}

/// The values of [`Weights::synthetic`]; those of large matrices are repeated from a pool of 2^20 values.
struct Plain {
    weights: Weights,
    pool: Tensor,
}

impl Plain {
    /// Number of values drawn.
    const DRAWN: i64 = 1 << 20;

    fn new(seed: u64) -> kontext::Result<Self> {
        let pool = noise::randn(&[Self::DRAWN], seed, Kind::Float, Device::Cpu)?;
        Ok(Self {
            weights: Weights::synthetic(seed),
            pool,
        })
    }

    fn tensor(&self, name: &str, shape: &[i64]) -> kontext::Result<Tensor> {
        let count = shape.iter().product::<i64>();
        if count <= Self::DRAWN {
            return self.weights.tensor(name, shape);
        }
        let times = (count as u64).div_ceil(Self::DRAWN as u64) as i64;
        let values = self.pool.f_repeat([times])?.f_narrow(0, 0, count)?.f_reshape(shape)?;
        Ok(values.f_div_scalar(((count / shape.first().copied().unwrap_or(1)) as f64).sqrt())?)
    }

    fn bytes(&self, name: &str, shape: &[i64], format: Format) -> kontext::Result<Vec<u8>> {
        let values = kontext_core::array::to_vec(&self.tensor(name, shape)?)?;
        Ok(pack(format, &values, values.len())?.into_parts().0)
    }
}

/// Returns a model's tensors: those selected by `is_packed` in the format, the others plain.
fn tensors<'a>(
    shapes: BTreeMap<String, Vec<i64>>,
    pools: &'a Pools,
    plain: &'a Plain,
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
                Ok(Cow::Owned(plain.bytes(&own, &shape, format)?))
            }));
            continue;
        }
        let format = if stored == Stored::Q4_0 {
            Format::Q4_0
        } else {
            Format::F8E4M3
        };
        let scale = format!("{}.scale_weight", name.trim_end_matches(".weight"));
        let data = move || Ok(Cow::Owned(pools.cut(stored, index, count, inputs)));
        tensors.push(StreamedTensor::new(name, format, &sides, data));
        if stored == Stored::Fp8 {
            let data = move || Ok(Cow::Owned(factor(inputs).to_le_bytes().to_vec()));
            tensors.push(StreamedTensor::new(scale, Format::F32, &[], data));
        }
    }
    if stored == Stored::Fp8 {
        tensors.push(StreamedTensor::new("scaled_fp8", Format::F8E4M3, &[0], || {
            Ok(Cow::Borrowed(&[]))
        }));
    }
    tensors
}

fn write_transformer(sizes: &ModelSizes, stored: Stored, path: &Path) -> anyhow::Result<()> {
    let blank = Weights::blank();
    Dit::new(&blank, &sizes.dit, |_| ())?;
    let (pools, plain) = (Pools::default(), Plain::new(1)?);
    let block = |name: &str, shape: &[i64]| name.contains("_blocks.") && shape.len() == 2;
    let tensors = tensors(blank.shapes(), &pools, &plain, stored, block);
    match stored {
        Stored::Q4_0 => write_gguf(
            path,
            &[("general.architecture", Value::Text("flux".to_owned()))],
            tensors,
        )?,
        Stored::Fp8 => save_streamed(path, HashMap::new(), tensors)?,
    }
    Ok(())
}

/// Writes the other parts: T5 in scaled fp8, CLIP and the autoencoder in f32, character-level tokenizers.
fn write_rest(sizes: &ModelSizes, folder: &Path) -> anyhow::Result<()> {
    kontext::random_model(folder, 1, kontext::Layout::Diffusers)?;
    let made = |build: &dyn Fn(&Weights) -> kontext::Result<()>| -> anyhow::Result<Vec<(String, Tensor)>> {
        let (blank, plain) = (Weights::blank(), Plain::new(2)?);
        build(&blank)?;
        let draw = |(name, shape): (String, Vec<i64>)| Ok((name.clone(), plain.tensor(&name, &shape)?));
        Ok(blank.shapes().into_iter().map(draw).collect::<kontext::Result<_>>()?)
    };
    save_part::clip(
        folder,
        &made(&|w| ClipEncoder::new(w, &sizes.clip, Kind::Float).map(drop))?,
        &sizes.clip,
    )?;
    save_part::vae(
        folder,
        &made(&|w| AutoencoderKl::new(w, &sizes.vae).map(drop))?,
        &sizes.vae,
    )?;
    // First an empty T5 for its configuration, then its weights.
    save_part::t5(folder, &[], &sizes.t5)?;
    let blank = Weights::blank();
    T5Encoder::new(&blank, &sizes.t5, Kind::Float)?;
    let (pools, plain) = (Pools::default(), Plain::new(3)?);
    let inner = |name: &str, shape: &[i64]| {
        name.starts_with("encoder.block.") && shape.len() == 2 && !name.contains("relative_attention_bias")
    };
    let tensors = tensors(blank.shapes(), &pools, &plain, Stored::Fp8, inner);
    save_streamed(folder.join("text_encoder_2/model.safetensors"), HashMap::new(), tensors)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// In both formats the values have the standard deviation of trained weights: 1 / sqrt(inputs).
    #[test]
    fn both_formats_have_the_deviation_of_their_width() {
        let files = Files::new(
            Device::Cpu,
            Scale {
                sizes: ModelSizes::small(),
                divisor: 8,
                steps: 1,
            },
        );
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
