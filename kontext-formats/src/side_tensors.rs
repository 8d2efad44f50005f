//! Attaching side tensors to their weights: scales, absmax and bitsandbytes' quant state.
//!
//! Sources: Comfy-Org/ComfyUI `comfy/ops.py` (scaled fp8, old and new names); bitsandbytes
//! `functional.py`, `QuantState`, and `nn/modules.py`, `Linear8bitLt`, as diffusers saves them.

use std::collections::BTreeMap;

use kontext_core::{CheckpointError, Error, Result};
use serde::Deserialize;
use tch::Kind;

use super::Entry;
use super::file::{WeightFile, sides};
use super::quant::Format;
use super::scales::{Nested, SideTensors, floats_of};

/// bitsandbytes' quant state of a 4-bit weight.
#[derive(Deserialize)]
struct QuantState {
    quant_type: String,
    blocksize: usize,
    shape: Vec<i64>,
    #[serde(default)]
    nested_blocksize: usize,
    #[serde(default)]
    nested_offset: f32,
}

/// Number of 8-bit codes.
const CODES: usize = 256;
const QUANT_STATE: &str = ".quant_state.bitsandbytes__";
/// Suffixes of an fp8 weight's scale, which replace its `weight`.
const SCALES: [&str; 2] = [".scale_weight", ".weight_scale"];
/// Suffixes of dropped tensors: markers of a file or a layer, which the weights themselves make redundant,
/// and input scales, which serve multiplication in fp8.
const EXTRAS: [&str; 4] = [".scale_input", ".input_scale", ".comfy_quant", ".weight_format"];
const MARKER: &str = "scaled_fp8";
/// Suffixes of tensors that only programs write whose quantised weights are not read, and these programs'
/// names. A file may hold several; the first counts.
const UNREAD: [(&str, &str); 10] = [
    (".wscales", "nunchaku (SVDQuant)"),
    (".wcscales", "nunchaku (SVDQuant)"),
    (".weight._data", "optimum-quanto"),
    (".qzeros", "GPTQ or AWQ"),
    (".qweight", "GPTQ, AWQ or Marlin"),
    ("._weight_qdata", "torchao"),
    (".weight_scale_2", "ModelOpt or ComfyUI (NVFP4)"),
    (".weight_packed", "compressed-tensors"),
    (".zero_point", "SDNQ"),
    (".svd_up", "SDNQ"),
];

/// Refuses weights that another program quantised in a form that is not read.
fn check_form(files: &[WeightFile], names: &[String], entries: &BTreeMap<String, Entry>) -> Result<()> {
    let ends = |suffix: &str| names.iter().any(|name| name.ends_with(suffix));
    // SDNQ's scale of a quantised weight; norms may have a scale, too, but no such weight.
    let scaled = |name: &String| {
        let module = name.strip_suffix(".scale");
        let weight = module.and_then(|module| entries.get(&format!("{module}.weight")));
        weight.is_some_and(|weight| {
            let kind = weight.stored.kind;
            !matches!(kind, Some(Kind::Float | Kind::BFloat16 | Kind::Half | Kind::Double))
        })
    };
    let known = UNREAD
        .iter()
        .find(|(suffix, _)| ends(suffix))
        .map(|(_, program)| *program);
    match known.or_else(|| names.iter().any(scaled).then_some("SDNQ")) {
        None => Ok(()),
        Some(program) => {
            let path = files.first().map(|file| file.path.clone()).unwrap_or_default();
            Err(Error::checkpoint(path)(CheckpointError::Unsupported {
                found: format!("quantised by {program}, which is not read here"),
                remedy: "take the model in bf16, fp8 (plain or scaled), NF4 of bitsandbytes, or GGUF".to_owned(),
            }))
        }
    }
}

/// Attaches side tensors to their weights, so that only tensors of the model remain. Their element counts are
/// checked here, from headers; they are read with their weights.
pub(super) fn fold(files: &[WeightFile], entries: &mut BTreeMap<String, Entry>) -> Result<()> {
    let names: Vec<String> = entries.keys().cloned().collect();
    check_form(files, &names, entries)?;
    for name in &names {
        let scaled = SCALES.iter().find_map(|end| name.strip_suffix(end));
        if let Some((weight, _)) = name.split_once(QUANT_STATE) {
            four_bits(files, entries, name, weight)?;
        } else if let Some(layer) = name.strip_suffix(".SCB") {
            let bytes = |kind| kind == Some(Kind::Int8);
            attach(
                files,
                entries,
                name,
                &format!("{layer}.weight"),
                bytes,
                |weight, maxima| {
                    let rows = weight.stored.sides().0;
                    weight.stored.kind = None;
                    weight.stored.format = Some(Format::Int8);
                    weight.side = SideTensors::RowAbsmax(maxima.place());
                    count(maxima, rows, &format!("{rows} values, one for each row"))
                },
            )?;
        } else if let Some(layer) = scaled {
            let narrow = |kind| matches!(kind, Some(Kind::Float8e4m3fn | Kind::Float8e5m2));
            attach(
                files,
                entries,
                name,
                &format!("{layer}.weight"),
                narrow,
                |weight, scales| {
                    let rows = weight.stored.sides().0;
                    weight.side = SideTensors::Scale(scales.place());
                    let expected = if scales.stored.elements() == 1 { 1 } else { rows };
                    count(scales, expected, &format!("1 value, or one for each of {rows} rows"))
                },
            )?;
        } else if name.rsplit('.').next() == Some(MARKER) || EXTRAS.iter().any(|end| name.ends_with(end)) {
            entries.remove(name);
        }
    }
    Ok(())
}

/// Moves the side tensor `name` from the entries to its weight, if that weight fits.
fn attach(
    files: &[WeightFile],
    entries: &mut BTreeMap<String, Entry>,
    name: &str,
    weight: &str,
    fits: impl Fn(Option<Kind>) -> bool,
    hand: impl FnOnce(&mut Entry, &Entry) -> Result<(), String>,
) -> Result<()> {
    if entries.get(weight).is_some_and(|entry| fits(entry.stored.kind))
        && let Some(tensor) = entries.remove(name)
        && let Some(entry) = entries.get_mut(weight)
    {
        entry.side_bytes += tensor.stored.range.len() as u64;
        hand(entry, &tensor).map_err(|reason| quantised(files, &tensor, weight, reason))?;
    }
    Ok(())
}

fn four_bits(files: &[WeightFile], entries: &mut BTreeMap<String, Entry>, name: &str, weight: &str) -> Result<()> {
    let Some(state_entry) = entries.remove(name) else {
        return Ok(());
    };
    let wrong = |reason: String| quantised(files, &state_entry, weight, reason);
    let text: Vec<u8> = floats_of(files, &state_entry.place())?
        .iter()
        .map(|&byte| byte as u8)
        .collect();
    // A struct would also be read from a list of its fields' values.
    if text.trim_ascii_start().starts_with(b"[") {
        return Err(wrong(format!(
            "`{name}` is a list, expected an object in braces, `{{…}}`"
        )));
    }
    let state: QuantState =
        serde_json::from_slice(&text).map_err(|e| wrong(format!("`{name}` is no description of one: {e}")))?;
    let format = match state.quant_type.as_str() {
        "nf4" => Format::Nf4,
        "fp4" => Format::Fp4,
        other => return Err(wrong(format!("`{name}` names the type `{other}`, expected nf4 or fp4"))),
    };
    let mut bytes = 0;
    let mut take = |part: &str| -> Result<Entry> {
        let full = format!("{weight}.{part}");
        let entry = entries
            .remove(&full)
            .ok_or_else(|| wrong(format!("`{full}` is missing")))?;
        bytes += entry.stored.range.len() as u64;
        Ok(entry)
    };
    take("quant_map")?;
    let absmax = take("absmax")?;
    let nested = match state.nested_blocksize {
        0 => None,
        block => Some((block, take("nested_absmax")?, take("nested_quant_map")?)),
    };
    let Some(entry) = entries.get_mut(weight) else {
        return Err(wrong(format!("`{name}` is there, the weight is not")));
    };
    let elements = state
        .fit(format, entry.stored.range.len())
        .map_err(|reason| wrong(format!("`{name}` {reason}")))?;
    let blocks = elements.div_ceil(state.blocksize);
    let block_count = |blocks: usize, size: usize| format!("{blocks} values, one for each block of {size}");
    count(&absmax, blocks, &block_count(blocks, state.blocksize)).map_err(wrong)?;
    if let Some((block, maxima, map)) = &nested {
        if absmax.stored.kind != Some(Kind::Uint8) {
            return Err(wrong(format!(
                "`{}` is of {}, expected U8",
                absmax.name, absmax.stored.dtype
            )));
        }
        let blocks = blocks.div_ceil(*block);
        count(maxima, blocks, &block_count(blocks, *block)).map_err(wrong)?;
        count(map, CODES, &format!("{CODES} values, one for each code")).map_err(wrong)?;
    }
    let nested = nested.map(|(block, maxima, map)| Nested {
        absmax: maxima.place(),
        map: map.place(),
        block,
        offset: state.nested_offset,
    });
    entry.stored.shape = state.shape;
    entry.stored.kind = None;
    entry.stored.format = Some(format);
    entry.side = SideTensors::BlockAbsmax {
        absmax: absmax.place(),
        block: state.blocksize,
        nested,
    };
    entry.side_bytes += bytes;
    Ok(())
}

impl QuantState {
    /// Returns the number of elements described, if they fit this many bytes of the format.
    fn fit(&self, format: Format, bytes: usize) -> Result<usize, String> {
        let shape = &self.shape;
        if shape.iter().any(|&side| side < 1) {
            return Err(format!("describes the shape {shape:?}, expected sides from 1 on"));
        }
        let product = shape
            .iter()
            .try_fold(1_usize, |product, &side| product.checked_mul(side as usize));
        let Some(elements) = product else {
            return Err(format!(
                "describes the shape {shape:?}, whose elements no file can hold"
            ));
        };
        let expected = elements.div_ceil(format.block()) * format.bytes();
        if expected != bytes {
            return Err(format!(
                "describes the shape {shape:?}, which takes {expected} bytes, the weight has {bytes}"
            ));
        }
        if format.row_bytes(sides(shape).1).is_none() {
            let (block, format) = (format.block(), format.name());
            return Err(format!(
                "describes the shape {shape:?}, {format} asks for rows of a multiple of {block}"
            ));
        }
        if self.blocksize == 0 {
            return Err("describes blocks of 0 elements, expected at least 1".to_owned());
        }
        Ok(elements)
    }
}

/// Checks the element count of a side tensor; `description` is the expected count in words, for the error.
fn count(tensor: &Entry, expected: usize, description: &str) -> Result<(), String> {
    let got = tensor.stored.elements();
    if got == expected as u64 {
        Ok(())
    } else {
        Err(format!("`{}`: expected {description}, got {got}", tensor.name))
    }
}

fn quantised(files: &[WeightFile], tensor: &Entry, weight: &str, reason: String) -> Error {
    let path = files.get(tensor.file).map(|f| f.path.clone()).unwrap_or_default();
    Error::checkpoint(path)(CheckpointError::Quantised {
        name: weight.to_owned(),
        reason,
    })
}
