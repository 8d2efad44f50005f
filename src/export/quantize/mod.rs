//! Quantisation of the transformer or T5 to files in other programs' formats.
//!
//! GGUF files follow ComfyUI-GGUF and stable-diffusion.cpp: the transformer under BFL's names, T5 under
//! llama.cpp's. Safetensors files hold ComfyUI's scaled fp8. Int8 is a folder, in the layout of bitsandbytes
//! models saved by diffusers and transformers. Weights are read from any supported format, one tensor at a
//! time.

mod int8_folder;
mod source;

use std::borrow::Cow;
use std::collections::HashMap;
use std::path::Path;

use kontext_core::{Error, Kind, Result, Tensor};
use kontext_dit::Dit;
use kontext_dit::names::is_block;
use kontext_formats::quant::{Format, pack};
use kontext_formats::{Quantize, StreamedTensor, Value, save_streamed, write_gguf};
use kontext_nn::Weights;
use kontext_text::{T5Encoder, t5_gguf_name};

use self::source::Source;
use super::renamed::Piece;
use crate::{Cancel, Checkpoint};

/// Quantisation version stated in GGUF files.
const QUANTIZATION_VERSION: u32 = 2;

/// Writes the transformer of a model: its blocks' matrices quantised, its input and output matrices in bf16,
/// vectors in f32.
///
/// A file ending in `.gguf` takes the Q formats, one in `.safetensors` [`Quantize::Fp8`]. [`Quantize::Int8`]
/// is a folder, whose path ends in neither: `config.json` and `diffusion_pytorch_model.safetensors` as
/// diffusers saves a model of `BitsAndBytesConfig(load_in_8bit=True)`. It replaces a model's folder
/// `transformer`, in diffusers as well as here. Its last projection is in int8, too, because its name in
/// diffusers does not differ from those in the blocks.
///
/// # Errors
/// Those of opening the model; [`Error::InvalidArgument`] for a format that the file or the folder cannot
/// hold, or a model with sizes unknown to diffusers; [`Error::Io`], also for an existing folder with content.
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
///
/// let part = folder.join("transformer-int8");
/// quantize::transformer(&Checkpoint::find(folder)?, Quantize::Int8, &part)?;
/// let pipe = kontext::Pipeline::builder().transformer(part).load(folder)?;
/// # Ok::<(), kontext::Error>(())
/// ```
pub fn transformer(model: &Checkpoint, to: Quantize, out: impl AsRef<Path>) -> Result<()> {
    transformer_with(model, to, out, &Cancel::new())
}

/// Writes the transformer as [`transformer`], until the switch cancels it: then nothing is written.
///
/// # Errors
/// Those of [`transformer`], and [`Error::Cancelled`] with the number of tensors that were read.
pub fn transformer_with(model: &Checkpoint, to: Quantize, out: impl AsRef<Path>, cancel: &Cancel) -> Result<()> {
    let target = Target::of(out.as_ref(), to)?;
    let (weights, config) = model.open_transformer()?;
    let weights = Source::new(weights, cancel);
    let blank = Weights::blank();
    Dit::new(&blank, &config, |_| ())?;
    if target == Target::Folder {
        return int8_folder::transformer(&weights, &config, blank.shapes(), out.as_ref());
    }
    let plan = |(name, whole): (String, Vec<i64>)| {
        let inner = is_block(&name);
        Planned {
            to: inner.then_some(to),
            piece: Piece::whole(name.clone()),
            name,
            whole,
        }
    };
    write(
        &weights,
        blank.shapes().into_iter().map(plan),
        target,
        "flux",
        out.as_ref(),
    )
}

/// Writes T5's encoder: its matrices quantised, its embedding table in bf16 and its position bias in f32,
/// vectors in f32. See [`transformer`] for the files.
///
/// The folder of [`Quantize::Int8`] holds `config.json` and `model.safetensors`, as transformers saves them,
/// and replaces `text_encoder_2`. Its matrices `wo` are in bf16: transformers never quantises them.
///
/// # Errors
/// Those of [`transformer`].
pub fn t5(model: &Checkpoint, to: Quantize, out: impl AsRef<Path>) -> Result<()> {
    t5_with(model, to, out, &Cancel::new())
}

/// Writes T5's encoder as [`t5`], until the switch cancels it: then nothing is written.
///
/// # Errors
/// Those of [`transformer_with`].
pub fn t5_with(model: &Checkpoint, to: Quantize, out: impl AsRef<Path>, cancel: &Cancel) -> Result<()> {
    let target = Target::of(out.as_ref(), to)?;
    let weights = T5Encoder::weights(&model.t5)?;
    let config = T5Encoder::config_of(&weights, &model.t5)?;
    let weights = Source::new(weights, cancel);
    let blank = Weights::blank();
    T5Encoder::new(&blank, &config, Kind::Float)?;
    let table = if weights.weights().contains("shared.weight") {
        "shared.weight"
    } else {
        "encoder.embed_tokens.weight"
    };
    let plan = |(name, whole): (String, Vec<i64>)| {
        let saved = if target == Target::Gguf {
            t5_gguf_name(&name)
        } else {
            name.clone()
        };
        let inner = T5Encoder::is_block(&name) && !name.contains("relative_attention_bias");
        let name = if name == "shared.weight" {
            table.to_owned()
        } else {
            name
        };
        Planned {
            to: inner.then_some(to),
            piece: Piece::whole(saved),
            name,
            whole,
        }
    };
    let planned = blank.shapes().into_iter().map(plan);
    if target == Target::Folder {
        return int8_folder::t5(&weights, &config, planned, out.as_ref());
    }
    write(&weights, planned, target, "t5encoder", out.as_ref())
}

/// Output format, determined by the path and the quantisation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Target {
    Gguf,
    ScaledFp8,
    Folder,
}

impl Target {
    fn of(out: &Path, to: Quantize) -> Result<Self> {
        const GGUF: &str = "q8_0, q5_1, q5_0, q4_1 or q4_0";
        const INT8: &str = "int8 is a folder: a path that ends in neither .gguf nor .safetensors";
        let ends = |ending: &str| out.extension().is_some_and(|extension| extension == ending);
        match (ends("gguf"), ends("safetensors"), to) {
            (true, _, Quantize::Fp8 | Quantize::Int8) => {
                let expected = format!("{GGUF} (fp8 is a .safetensors file, {INT8})");
                Err(Error::invalid("format of a .gguf file", expected, to))
            }
            (true, _, _) => Ok(Self::Gguf),
            (false, _, Quantize::Fp8) => Ok(Self::ScaledFp8),
            (false, false, Quantize::Int8) => Ok(Self::Folder),
            (false, true, Quantize::Int8) => Err(Error::invalid(
                "format of a .safetensors file",
                format!("fp8 ({INT8})"),
                to,
            )),
            (false, _, _) => {
                let expected = format!("fp8, or int8 for a folder ({GGUF} are .gguf files)");
                Err(Error::invalid("format of a path that is no .gguf", expected, to))
            }
        }
    }
}

/// A tensor and its output format.
#[derive(Debug, Clone)]
struct Planned {
    /// Its name in the model, and its full shape.
    name: String,
    whole: Vec<i64>,
    /// The piece of it in the file.
    piece: Piece,
    to: Option<Quantize>,
}

impl Planned {
    fn shape(&self) -> Vec<i64> {
        self.piece.shape(&self.whole)
    }

    fn matrix(&self) -> bool {
        matches!(self.whole.as_slice(), [_, columns] if *columns > 1)
    }

    /// Returns the quantisation if the tensor supports it; otherwise matrices are bf16 and vectors f32.
    fn quantize(&self) -> Option<Quantize> {
        self.to
            .filter(|to| self.matrix() && to.fits(self.whole.last().copied().unwrap_or_default()))
    }

    fn sides(&self) -> Vec<usize> {
        self.shape().iter().map(|side| side.unsigned_abs() as usize).collect()
    }

    fn plain(&self) -> Format {
        if self.matrix() && !self.name.contains("relative_attention_bias") {
            Format::Bf16
        } else {
            Format::F32
        }
    }

    fn read_whole(&self, weights: &Source<'_>) -> Result<Tensor> {
        weights.read(&self.name, &self.whole)
    }

    fn read(&self, weights: &Source<'_>) -> Result<Tensor> {
        self.piece.of(&self.read_whole(weights)?)
    }
}

fn write(
    weights: &Source<'_>,
    planned: impl Iterator<Item = Planned>,
    target: Target,
    architecture: &str,
    out: &Path,
) -> Result<()> {
    // Before the scales of fp8 are computed.
    kontext_core::check_writable(out)?;
    let planned: Vec<Planned> = planned.collect();
    let twice = planned
        .iter()
        .filter(|tensor| target != Target::Gguf && tensor.quantize().is_some());
    weights.expect(planned.len() + twice.count());
    let planned = planned.into_iter();
    if target == Target::Gguf {
        let metadata = [
            ("general.architecture", Value::Text(architecture.to_owned())),
            ("general.quantization_version", Value::U32(QUANTIZATION_VERSION)),
        ];
        return write_gguf(out, &metadata, planned.map(|tensor| streamed(weights, tensor)));
    }
    let mut tensors = vec![marker()];
    for tensor in planned {
        match tensor.quantize() {
            Some(_) => tensors.extend(scaled(weights, tensor)?),
            None => tensors.push(streamed(weights, tensor)),
        }
    }
    save_streamed(out, torch_text(), tensors)
}

/// Returns the metadata that PyTorch programs expect in a safetensors header.
fn torch_text() -> HashMap<String, String> {
    HashMap::from([("format".to_owned(), "pt".to_owned())])
}

fn streamed<'a>(weights: &'a Source<'_>, tensor: Planned) -> StreamedTensor<'a> {
    let format = tensor.quantize().map_or(tensor.plain(), Quantize::format);
    let (saved, sides) = (tensor.piece.name.clone(), tensor.sides());
    StreamedTensor::new(saved, format, &sides, move || {
        let value = tensor.read(weights)?;
        if let Some(to) = tensor.quantize() {
            return Ok(Cow::Owned(to.pack(&value)?.0));
        }
        let wrong = |_| Error::Shape {
            tensor: "weight",
            expected: "[..]",
            got: value.size(),
        };
        let values = Vec::<f32>::try_from(&value.f_reshape([-1])?).map_err(wrong)?;
        Ok(Cow::Owned(pack(format, &values, values.len().max(1))?.into_parts().0))
    })
}

/// Returns the marker of ComfyUI's scaled fp8 files.
fn marker<'a>() -> StreamedTensor<'a> {
    StreamedTensor::new("scaled_fp8", Format::F8E4M3, &[0], || Ok(Cow::Borrowed(&[])))
}

/// Returns a weight in fp8 and its scale.
///
/// The scale is written after the weight (wide tensors come first in the file), so each is computed from a
/// separate read.
fn scaled<'a>(weights: &'a Source<'_>, tensor: Planned) -> Result<[StreamedTensor<'a>; 2]> {
    let (_, factors) = Quantize::Fp8.pack(&tensor.read(weights)?)?;
    let factor = floats(side_tensor_name(&tensor, "scale_weight"), &[], &factors);
    Ok([streamed(weights, tensor), factor])
}

/// Returns the name of a side tensor of a weight.
fn side_tensor_name(weight: &Planned, what: &str) -> String {
    let saved = &weight.piece.name;
    format!("{}.{what}", saved.strip_suffix(".weight").unwrap_or(saved))
}

/// Returns an f32 tensor of given values.
fn floats<'a>(name: String, shape: &[usize], values: &[f32]) -> StreamedTensor<'a> {
    let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    StreamedTensor::new(name, Format::F32, shape, move || Ok(Cow::Owned(bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Layout, random_model};

    #[test]
    fn a_cancelled_quantisation_says_how_far_it_came_and_leaves_no_file() {
        let folder = tempfile::tempdir().unwrap();
        random_model(folder.path().join("model"), 7, Layout::Diffusers).unwrap();
        let model = Checkpoint::find(folder.path().join("model")).unwrap();
        let cancel = Cancel::new();
        cancel.cancel();
        for (to, name) in [
            (Quantize::Q8_0, "a.gguf"),
            (Quantize::Fp8, "a.safetensors"),
            (Quantize::Int8, "a"),
        ] {
            for write in [transformer_with, t5_with] {
                let error = write(&model, to, folder.path().join(name), &cancel).unwrap_err();
                assert!(
                    matches!(error, Error::Cancelled { done: 0, total: 10.. }),
                    "{to}: {error:?}"
                );
            }
        }
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn an_output_that_cannot_be_written_is_refused_before_weights_are_read() {
        let folder = tempfile::tempdir().unwrap();
        random_model(folder.path(), 7, Layout::Diffusers).unwrap();
        let model = Checkpoint::find(folder.path()).unwrap();
        let cancel = Cancel::new();
        cancel.cancel();
        for (to, name) in [
            (Quantize::Q8_0, "no/a.gguf"),
            (Quantize::Fp8, "no/a.safetensors"),
            (Quantize::Int8, "no/a"),
        ] {
            let error = transformer_with(&model, to, folder.path().join(name), &cancel).unwrap_err();
            assert!(matches!(error, Error::Io { .. }), "{to}: {error:?}");
        }
    }
}
