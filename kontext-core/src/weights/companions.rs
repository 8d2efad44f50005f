//! What some formats keep beside a weight: factors, and the state of a quantisation.
//!
//! Sources: Comfy-Org/ComfyUI `comfy/ops.py` (scaled fp8, old and new names); bitsandbytes
//! `functional.py`, `QuantState`, and `nn/modules.py`, `Linear8bitLt`, as diffusers saves them.

use std::collections::BTreeMap;

use serde::Deserialize;
use tch::{Kind, Tensor};

use super::Entry;
use super::file::WeightFile;
use crate::quant::Format;
use crate::{CheckpointError, Error, Result};

/// Where a tensor stands: the number of its file, and its name there.
pub(super) type Place = (usize, String);

/// What the elements of a weight are multiplied by.
#[derive(Debug, Clone, Default)]
pub(super) enum Companion {
    #[default]
    None,
    /// One factor, or one for each row.
    Factor(Place),
    /// The largest value of each row, which is stored as 127.
    RowMaxima(Place),
    /// The largest value of each block.
    BlockMaxima { absmax: Place, block: usize, nested: Option<Nested> },
}

/// Block maxima that are quantised themselves: `map[code] * absmax[block] + offset`.
#[derive(Debug, Clone)]
pub(super) struct Nested {
    absmax: Place,
    map: Place,
    block: usize,
    offset: f32,
}

/// Factors in memory.
#[derive(Debug, Clone, Default)]
pub(crate) enum Factors {
    #[default]
    None,
    All(f32),
    Rows(Vec<f32>),
    Blocks {
        size: usize,
        values: Vec<f32>,
    },
}

/// bitsandbytes' account of a weight in four bits.
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

/// As bitsandbytes has it.
const ONE_127TH: f32 = 7.874_016e-3;
const QUANT_STATE: &str = ".quant_state.bitsandbytes__";
/// Names of a factor beside an fp8 weight, which stand in place of its `weight`.
const FACTORS: [&str; 2] = [".scale_weight", ".weight_scale"];
/// Said of a file or a layer, and told by the weights themselves; factors of inputs serve
/// multiplication in fp8.
const EXTRAS: [&str; 4] = [".scale_input", ".input_scale", ".comfy_quant", ".weight_format"];
const MARKER: &str = "scaled_fp8";

/// Puts companions to their weights, so that what is left are tensors of the model.
pub(super) fn fold(files: &[WeightFile], entries: &mut BTreeMap<String, Entry>) -> Result<()> {
    let names: Vec<String> = entries.keys().cloned().collect();
    for name in &names {
        let factor = FACTORS.iter().find_map(|end| name.strip_suffix(end));
        if let Some((weight, _)) = name.split_once(QUANT_STATE) {
            four_bits(files, entries, name, weight)?;
        } else if let Some(layer) = name.strip_suffix(".SCB") {
            attach(
                entries,
                name,
                &format!("{layer}.weight"),
                |kind| kind == Some(Kind::Int8),
                |weight, place| {
                    weight.stored.kind = None;
                    weight.stored.format = Some(Format::Int8);
                    weight.companion = Companion::RowMaxima(place);
                },
            );
        } else if let Some(layer) = factor {
            let narrow = |kind| matches!(kind, Some(Kind::Float8e4m3fn | Kind::Float8e5m2));
            attach(entries, name, &format!("{layer}.weight"), narrow, |weight, place| {
                weight.companion = Companion::Factor(place);
            });
        } else if name.rsplit('.').next() == Some(MARKER) || EXTRAS.iter().any(|end| name.ends_with(end)) {
            entries.remove(name);
        }
    }
    Ok(())
}

/// Takes the companion `name` out of the entries and hands its place to its weight, if that is such a one.
fn attach(
    entries: &mut BTreeMap<String, Entry>,
    name: &str,
    weight: &str,
    fits: impl Fn(Option<Kind>) -> bool,
    hand: impl FnOnce(&mut Entry, Place),
) {
    if entries.get(weight).is_some_and(|entry| fits(entry.stored.kind))
        && let Some(companion) = entries.remove(name)
        && let Some(weight) = entries.get_mut(weight)
    {
        weight.companion_bytes += companion.stored.range.len() as u64;
        hand(weight, (companion.file, companion.name));
    }
}

fn four_bits(files: &[WeightFile], entries: &mut BTreeMap<String, Entry>, name: &str, weight: &str) -> Result<()> {
    let Some(state) = entries.remove(name) else { return Ok(()) };
    let path = files.get(state.file).map(|f| f.path.clone()).unwrap_or_default();
    let wrong = |reason: String| Error::config(&path, format!("`{name}` {reason}; fetch the file again"));
    let text = floats_of(files, &(state.file, state.name.clone()))?;
    let text: Vec<u8> = text.iter().map(|&byte| byte as u8).collect();
    let state: QuantState = serde_json::from_slice(&text).map_err(|e| wrong(format!("is no JSON: {e}")))?;
    let format = match state.quant_type.as_str() {
        "nf4" => Format::Nf4,
        "fp4" => Format::Fp4,
        other => return Err(wrong(format!("names the type `{other}`, expected nf4 or fp4"))),
    };
    let mut bytes = 0;
    let mut take = |part: &str| -> Result<Place> {
        let full = format!("{weight}.{part}");
        let missing = || wrong(format!("has no `{full}` beside it"));
        let entry = entries.remove(&full).ok_or_else(missing)?;
        bytes += entry.stored.range.len() as u64;
        Ok((entry.file, entry.name))
    };
    take("quant_map")?;
    let absmax = take("absmax")?;
    let nested = match state.nested_blocksize {
        0 => None,
        block => Some(Nested {
            absmax: take("nested_absmax")?,
            map: take("nested_quant_map")?,
            block,
            offset: state.nested_offset,
        }),
    };
    let entry = entries.get_mut(weight).ok_or_else(|| wrong(format!("has no `{weight}` beside it")))?;
    let elements = state.shape.iter().try_fold(1_i64, |product, &side| product.checked_mul(side.max(0)));
    let expected = elements.map(|n| n.unsigned_abs().div_ceil(2));
    if expected != Some(entry.stored.range.len() as u64) || state.blocksize == 0 {
        let held = entry.stored.range.len();
        return Err(wrong(format!(
            "describes {:?} in blocks of {}, its weight has {held} bytes",
            state.shape, state.blocksize
        )));
    }
    entry.stored.shape = state.shape;
    entry.stored.kind = None;
    entry.stored.format = Some(format);
    entry.companion = Companion::BlockMaxima { absmax, block: state.blocksize, nested };
    entry.companion_bytes += bytes;
    Ok(())
}

impl Companion {
    /// Reads the factors for a weight of this many rows and elements.
    pub(super) fn read(&self, files: &[WeightFile], name: &str, shape: &[i64]) -> Result<Factors> {
        let rows = shape.first().copied().unwrap_or(1).unsigned_abs() as usize;
        let elements = shape.iter().product::<i64>().unsigned_abs() as usize;
        let path = files.first().map(|f| f.path.clone()).unwrap_or_default();
        let counted = |values: Vec<f32>, expected: usize| {
            if values.len() == expected {
                return Ok(values);
            }
            let (expected, got) = (vec![expected as i64], vec![values.len() as i64]);
            let source = CheckpointError::Shape { name: format!("factors of {name}"), expected, got };
            Err(Error::checkpoint(&path)(source))
        };
        Ok(match self {
            Companion::None => Factors::None,
            Companion::Factor(place) => match floats_of(files, place)?.as_slice() {
                [factor] => Factors::All(*factor),
                factors => Factors::Rows(counted(factors.to_vec(), rows)?),
            },
            Companion::RowMaxima(place) => {
                let maxima = counted(floats_of(files, place)?, rows)?;
                Factors::Rows(maxima.into_iter().map(|max| max * ONE_127TH).collect())
            }
            Companion::BlockMaxima { absmax, block, nested } => {
                let values = match nested {
                    None => floats_of(files, absmax)?,
                    Some(nested) => nested.read(files, absmax)?,
                };
                Factors::Blocks { size: *block, values: counted(values, elements.div_ceil(*block))? }
            }
        })
    }
}

impl Nested {
    fn read(&self, files: &[WeightFile], codes: &Place) -> Result<Vec<f32>> {
        let (map, maxima) = (floats_of(files, &self.map)?, floats_of(files, &self.absmax)?);
        let value = |(index, code): (usize, &f32)| {
            let of = |values: &[f32], index: usize| values.get(index).copied().unwrap_or(f32::NAN);
            of(&map, *code as usize) * of(&maxima, index / self.block) + self.offset
        };
        Ok(floats_of(files, codes)?.iter().enumerate().map(value).collect())
    }
}

/// A tensor's values as f32.
fn floats_of(files: &[WeightFile], (file, name): &Place) -> Result<Vec<f32>> {
    let missing = || Error::invalid("file of a companion", "one of the checkpoint's", file);
    let values: Tensor = files.get(*file).ok_or_else(missing)?.read(name)?;
    let flat = values.f_to_kind(Kind::Float)?.f_reshape([-1])?;
    Vec::<f32>::try_from(&flat).map_err(|_| Error::Shape { tensor: "companion", expected: "[N]", got: values.size() })
}
