//! Writing the transformer or T5 packed, into a file that other programs read.
//!
//! GGUF files are those of ComfyUI-GGUF and stable-diffusion.cpp: the transformer by BFL's names, T5 by llama.cpp's.
//! Safetensors files hold ComfyUI's scaled fp8. The weights come from any form that is read, one tensor at a time.

use std::borrow::Cow;
use std::collections::HashMap;
use std::path::Path;

use kontext_core::quant::{Format, pack};
use kontext_core::weights::{Quantize, StreamedTensor, Value, save_streamed, write_gguf};
use kontext_core::{Error, Kind, Result, Tensor, Weights};
use kontext_dit::Dit;
use kontext_text::{T5Encoder, t5_gguf_name};

use crate::Checkpoint;

/// What GGUF files say of the version of their quantisation.
const QUANTIZATION_VERSION: u32 = 2;

/// Writes the transformer of a model: matrices of its blocks packed, those of the way in and out in bf16, vectors in
/// f32. A file ending in `.gguf` takes the Q formats, one in `.safetensors` [`Quantize::Fp8`].
///
/// # Errors
/// Those of opening the model; [`Error::InvalidArgument`] for a format that the file cannot hold; [`Error::Io`].
///
/// # Example
/// ```
/// use kontext::{Checkpoint, Layout, Quantize, quantize};
/// # let folder = tempfile::tempdir().unwrap();
/// # let folder = folder.path();
/// kontext::random_model(folder, 7, Layout::Diffusers)?;
/// let file = folder.join("flux1-kontext-Q8_0.gguf");
/// quantize::transformer(&Checkpoint::find(folder)?, Quantize::Q8_0, &file)?;
/// let pipe = kontext::Pipeline::builder().transformer(file).load(folder)?;
/// # Ok::<(), kontext::Error>(())
/// ```
pub fn transformer(model: &Checkpoint, to: Quantize, out: impl AsRef<Path>) -> Result<()> {
    let (weights, config) = model.open_transformer()?;
    let blank = Weights::blank();
    Dit::new(&blank, &config, |_| ())?;
    let plan = |(name, shape): (String, Vec<i64>)| {
        let inner = name.starts_with("double_blocks.") || name.starts_with("single_blocks.");
        Planned { to: inner.then_some(to), saved: name.clone(), name, shape }
    };
    let planned: Vec<Planned> = blank.shapes().into_iter().map(plan).collect();
    write(&weights, planned, to, "flux", out.as_ref())
}

/// Writes T5's encoder: all matrices packed, its table and its position bias in bf16 and f32, vectors in f32. See
/// [`transformer`] for the files.
///
/// # Errors
/// Those of [`transformer`].
pub fn t5(model: &Checkpoint, to: Quantize, out: impl AsRef<Path>) -> Result<()> {
    let weights = T5Encoder::weights(&model.t5)?;
    let config = T5Encoder::config_of(&weights, &model.t5)?;
    let blank = Weights::blank();
    T5Encoder::new(&blank, &config, Kind::Float)?;
    let gguf = is_gguf(out.as_ref());
    let table = if weights.contains("shared.weight") { "shared.weight" } else { "encoder.embed_tokens.weight" };
    let plan = |(name, shape): (String, Vec<i64>)| {
        let saved = if gguf { t5_gguf_name(&name) } else { name.clone() };
        let inner = name.starts_with("encoder.block.") && !name.contains("relative_attention_bias");
        let name = if name == "shared.weight" { table.to_owned() } else { name };
        Planned { to: inner.then_some(to), saved, name, shape }
    };
    let planned: Vec<Planned> = blank.shapes().into_iter().map(plan).collect();
    write(&weights, planned, to, "t5encoder", out.as_ref())
}

/// A tensor and how it is to be saved.
struct Planned {
    name: String,
    saved: String,
    shape: Vec<i64>,
    to: Option<Quantize>,
}

impl Planned {
    fn matrix(&self) -> bool {
        matches!(self.shape.as_slice(), [_, columns] if *columns > 1)
    }

    /// Packed where it may be, else bf16 for matrices and f32 for vectors.
    fn quantize(&self) -> Option<Quantize> {
        self.to.filter(|to| self.matrix() && to.fits(self.shape.last().copied().unwrap_or_default()))
    }

    fn sides(&self) -> Vec<usize> {
        self.shape.iter().map(|side| side.unsigned_abs() as usize).collect()
    }

    fn plain(&self) -> Format {
        if self.matrix() && !self.name.contains("relative_attention_bias") { Format::Bf16 } else { Format::F32 }
    }

    fn read(&self, weights: &Weights) -> Result<Tensor> {
        weights.clone().kind(Kind::Float).tensor(&self.name, &self.shape)
    }
}

fn write(weights: &Weights, planned: Vec<Planned>, to: Quantize, architecture: &str, out: &Path) -> Result<()> {
    match (is_gguf(out), to) {
        (true, Quantize::Fp8 | Quantize::Int8) => {
            Err(Error::invalid("format of a .gguf file", "q8_0, q5_1, q5_0, q4_1 or q4_0", to))
        }
        (true, _) => {
            let metadata = [
                ("general.architecture", Value::Text(architecture.to_owned())),
                ("general.quantization_version", Value::U32(QUANTIZATION_VERSION)),
            ];
            write_gguf(out, &metadata, planned.into_iter().map(|tensor| streamed(weights, tensor)))
        }
        (false, Quantize::Fp8) => {
            let mut tensors = vec![marker()];
            for tensor in planned {
                match tensor.quantize() {
                    Some(_) => tensors.extend(scaled(weights, tensor)?),
                    None => tensors.push(streamed(weights, tensor)),
                }
            }
            let text = HashMap::from([("format".to_owned(), "pt".to_owned())]);
            save_streamed(out, text, tensors)
        }
        (false, _) => Err(Error::invalid("format of a file that is no .gguf", "fp8", to)),
    }
}

fn is_gguf(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "gguf")
}

fn streamed(weights: &Weights, tensor: Planned) -> StreamedTensor<'_> {
    let format = tensor.quantize().map_or(tensor.plain(), Quantize::format);
    let (saved, sides) = (tensor.saved.clone(), tensor.sides());
    StreamedTensor::new(saved, format, &sides, move || {
        let value = tensor.read(weights)?;
        if let Some(to) = tensor.quantize() {
            return Ok(Cow::Owned(to.pack(&value)?.0));
        }
        let wrong = |_| Error::Shape { tensor: "weight", expected: "[..]", got: value.size() };
        let values = Vec::<f32>::try_from(&value.f_reshape([-1])?).map_err(wrong)?;
        Ok(Cow::Owned(pack(format, &values, values.len().max(1))?.into_parts().0))
    })
}

/// The mark of ComfyUI's scaled fp8 files.
fn marker<'a>() -> StreamedTensor<'a> {
    StreamedTensor::new("scaled_fp8", Format::F8E4M3, &[0], || Ok(Cow::Borrowed(&[])))
}

/// A weight in fp8 and its factor.
///
/// The factor is asked for after the weight (wide tensors come first in the file), so both are made anew.
fn scaled(weights: &Weights, tensor: Planned) -> Result<[StreamedTensor<'_>; 2]> {
    let layer = tensor.saved.strip_suffix(".weight").unwrap_or(&tensor.saved);
    let factor = format!("{layer}.scale_weight");
    let (_, factors) = Quantize::Fp8.pack(&tensor.read(weights)?)?;
    let bytes: Vec<u8> = factors.iter().flat_map(|factor| factor.to_le_bytes()).collect();
    let factor = StreamedTensor::new(factor, Format::F32, &[], move || Ok(Cow::Owned(bytes)));
    Ok([streamed(weights, tensor), factor])
}
