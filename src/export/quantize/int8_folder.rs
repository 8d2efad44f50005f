//! Int8 folders in the layout of bitsandbytes models saved by diffusers and transformers: a `config.json`
//! that names the quantisation, and each quantised weight in bytes, next to `SCB`, the row absmax.
//!
//! Sources: bitsandbytes 0.50 `nn/modules.py`, `Linear8bitLt`; huggingface/diffusers 0.38
//! `quantizers/bitsandbytes` and `quantization_config.py`, huggingface/transformers v4.57.6
//! `quantizers/quantizer_bnb_8bit.py` and `integrations/bitsandbytes.py`. The scalars `weight_format` that
//! bitsandbytes writes for its older versions are omitted: without them rows are read as they are.

use std::path::Path;

use kontext_core::{Error, OutputFolder, Result, Tensor, write_json};
use kontext_dit::{DitConfig, names};
use kontext_formats::{Quantize, StreamedTensor, save_streamed};
use kontext_text::T5Config;
use serde_json::{Value, json};

use super::source::Source;
use super::{Planned, floats, side_tensor_name, streamed, torch_text};
use crate::export::renamed::pieces;
use crate::export::save_part::{DIFFUSERS_FILE, TRANSFORMERS_FILE, dit_json, t5_json};

/// Modules of the transformer kept plain: the input layers and the last modulation. The last projection would
/// be another, but its name, `proj_out`, is also that of a layer in each single block, and diffusers would
/// skip those too.
const DIT_PLAIN: [&str; 4] = ["x_embedder", "context_embedder", "time_text_embed", "norm_out"];
/// Modules of T5 kept plain: transformers skips them regardless of the configuration.
const T5_PLAIN: [&str; 1] = ["wo"];
/// Ratio of an MLP's width to the model's, fixed by diffusers.
const MLP_RATIO: i64 = 4;

/// Writes the transformer; `shapes` are its tensors' shapes by BFL's names.
pub(super) fn transformer(
    weights: &Source<'_>,
    config: &DitConfig,
    shapes: impl IntoIterator<Item = (String, Vec<i64>)>,
    out: &Path,
) -> Result<()> {
    let (width, mlp) = (config.width(), config.mlp_width);
    if mlp != MLP_RATIO * width {
        let expected = format!("{}, as diffusers has it at the width {width}", MLP_RATIO * width);
        return Err(Error::invalid(
            "width of the MLPs for a folder of diffusers",
            expected,
            mlp,
        ));
    }
    let plan = |(name, whole): (String, Vec<i64>)| {
        let (pieces, to) = (pieces(&name, &whole, names::diffusers, width), Some(Quantize::Int8));
        pieces.into_iter().map(move |piece| Planned {
            name: name.clone(),
            whole: whole.clone(),
            piece,
            to,
        })
    };
    let planned = shapes.into_iter().flat_map(plan);
    write(weights, planned, &DIT_PLAIN, dit_json(config), DIFFUSERS_FILE, out)
}

/// Writes T5's encoder.
pub(super) fn t5(
    weights: &Source<'_>,
    config: &T5Config,
    planned: impl Iterator<Item = Planned>,
    out: &Path,
) -> Result<()> {
    let mut json = t5_json(config);
    // The dtype in which transformers loads the plain tensors by default.
    insert(&mut json, "dtype", "bfloat16".into());
    write(weights, planned, &T5_PLAIN, json, TRANSFORMERS_FILE, out)
}

fn write(
    weights: &Source<'_>,
    planned: impl Iterator<Item = Planned>,
    plain: &[&str],
    mut config: Value,
    file: &str,
    out: &Path,
) -> Result<()> {
    let folder = OutputFolder::create(out)?;
    let spared = |tensor: &Planned| tensor.piece.name.split('.').any(|module| plain.contains(&module));
    let planned = planned.map(|tensor| {
        if spared(&tensor) {
            Planned { to: None, ..tensor }
        } else {
            tensor
        }
    });
    let tensors = with_maxima(weights, &planned.collect::<Vec<_>>())?;
    save_streamed(folder.path().join(file), torch_text(), tensors)?;
    insert(&mut config, "quantization_config", quantization(plain));
    write_json(folder.path().join("config.json"), &config)?;
    folder.publish()
}

/// Returns all tensors, and the absmax of the quantised ones. Absmax is computed here, tensor by tensor,
/// since it precedes the weights in the file; the pieces of a tensor follow each other, so that it is read
/// only once for theirs.
fn with_maxima<'a>(weights: &'a Source<'_>, planned: &[Planned]) -> Result<Vec<StreamedTensor<'a>>> {
    let groups = planned.chunk_by(|a, b| a.name == b.name);
    let twice = groups.filter(|pieces| pieces.iter().any(|piece| piece.quantize().is_some()));
    weights.expect(planned.len() + twice.count());
    let mut tensors = Vec::new();
    for pieces in planned.chunk_by(|a, b| a.name == b.name) {
        let packed: Vec<&Planned> = pieces.iter().filter(|piece| piece.quantize().is_some()).collect();
        if let Some(first) = packed.first() {
            let whole = first.read_whole(weights)?;
            for tensor in packed {
                tensors.push(maxima(tensor, &tensor.piece.of(&whole)?)?);
            }
        }
        tensors.extend(pieces.iter().map(|piece| streamed(weights, piece.clone())));
    }
    Ok(tensors)
}

/// Computes the absmax of each row, which is stored as 127.
fn maxima<'a>(tensor: &Planned, value: &Tensor) -> Result<StreamedTensor<'a>> {
    let maxima = value.f_abs()?.f_amax([1_i64].as_slice(), false)?;
    let wrong = |_| Error::Shape {
        tensor: "row maxima",
        expected: "[out]",
        got: maxima.size(),
    };
    let maxima = Vec::<f32>::try_from(&maxima).map_err(wrong)?;
    Ok(floats(side_tensor_name(tensor, "SCB"), &[maxima.len()], &maxima))
}

/// Returns the configuration saved for `BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=plain)`.
fn quantization(plain: &[&str]) -> Value {
    json!({
        "quant_method": "bitsandbytes", "load_in_8bit": true, "load_in_4bit": false,
        "_load_in_8bit": true, "_load_in_4bit": false,
        "llm_int8_threshold": 6.0, "llm_int8_skip_modules": plain,
        "llm_int8_enable_fp32_cpu_offload": false, "llm_int8_has_fp16_weight": false,
        "bnb_4bit_compute_dtype": "float32", "bnb_4bit_quant_storage": "uint8",
        "bnb_4bit_quant_type": "fp4", "bnb_4bit_use_double_quant": false,
    })
}

fn insert(config: &mut Value, key: &str, value: Value) {
    if let Some(fields) = config.as_object_mut() {
        fields.insert(key.to_owned(), value);
    }
}
