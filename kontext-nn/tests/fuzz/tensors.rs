//! A safetensors file in its parts, and mutations that know its format.

use serde_json::{Map, Value, json};

use crate::common::with_header;
use crate::draw::Draw;

const DTYPES: [&str; 18] = [
    "F32", "F16", "BF16", "F64", "F8_E4M3", "F8_E5M2", "I8", "U8", "BOOL", "I64", "I32", "I16", "U64", "C64", "F4",
    "F6_E2M3", "F8_E8M0", "F31",
];
/// Name suffixes with a meaning.
const ENDS: [&str; 18] = [
    ".weight",
    ".bias",
    ".SCB",
    ".weight_format",
    ".scale_weight",
    ".weight_scale",
    ".scale_input",
    ".input_scale",
    ".comfy_quant",
    ".scaled_fp8",
    ".weight.absmax",
    ".weight.quant_map",
    ".weight.nested_absmax",
    ".weight.nested_quant_map",
    ".weight.quant_state.bitsandbytes__nf4",
    ".weight.quant_state.bitsandbytes__fp4",
    ".quant_state.bitsandbytes__",
    "",
];
/// Size limit of a reshaped tensor in bytes, so that cases stay fast.
const LARGEST: u64 = 20_000;

#[derive(Clone)]
pub(crate) struct Tensors {
    parts: Vec<Part>,
    text: Option<Value>,
}

#[derive(Clone)]
struct Part {
    name: String,
    dtype: String,
    shape: Vec<Value>,
    data: Vec<u8>,
    /// Offsets that differ from those of the data.
    offsets: Option<Value>,
}

impl Tensors {
    /// Reads the parts of a sound file.
    pub(crate) fn read(file: &[u8]) -> Option<Self> {
        let (length, rest) = file.split_first_chunk::<8>()?;
        let (header, data) = rest.split_at_checked(u64::from_le_bytes(*length) as usize)?;
        let mut header: Map<String, Value> = serde_json::from_slice(header).ok()?;
        let text = header.remove("__metadata__");
        let part = |(name, info): (String, Value)| {
            let at = |end: usize| Some(info["data_offsets"][end].as_u64()? as usize);
            let data = data.get(at(0)?..at(1)?)?.to_vec();
            let (dtype, shape) = (info["dtype"].as_str()?.to_owned(), info["shape"].as_array()?.clone());
            Some(Part {
                name,
                dtype,
                shape,
                data,
                offsets: None,
            })
        };
        Some(Self {
            parts: header.into_iter().map(part).collect::<Option<_>>()?,
            text,
        })
    }

    /// Builds the file.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let (mut header, mut data) = (Map::new(), Vec::new());
        for part in &self.parts {
            let start = data.len();
            data.extend(&part.data);
            let offsets = part.offsets.clone().unwrap_or_else(|| json!([start, data.len()]));
            let info = json!({ "dtype": part.dtype, "shape": part.shape, "data_offsets": offsets });
            header.insert(part.name.clone(), info);
        }
        if let Some(text) = &self.text {
            header.insert("__metadata__".to_owned(), text.clone());
        }
        with_header(&Value::Object(header).to_string(), &data)
    }

    /// Mutates one thing.
    pub(crate) fn change(&mut self, draw: &mut Draw) {
        let index = draw.below(self.parts.len());
        let names: Vec<String> = self.parts.iter().map(|part| part.name.clone()).collect();
        let Some(part) = self.parts.get_mut(index) else {
            self.parts.push(Part::new(draw));
            return;
        };
        match draw.below(14) {
            0 if !part.shape.is_empty() => {
                let side = draw.below(part.shape.len());
                part.shape[side] = any(draw);
            }
            1 if draw.once_in(2) => drop(part.shape.pop()),
            1 => part.shape.push(json!(draw.below(3))),
            2 => part.dtype = (*draw.pick(&DTYPES)).to_owned(),
            3 => part.reshape(draw),
            4 => {
                let length = draw.below(300);
                part.data.resize(length, 0x3c);
            }
            5 => {
                let others = names.iter().map(|name| layer(name)).collect::<Vec<_>>();
                part.name = format!("{}{}", draw.pick(&others), draw.pick(&ENDS));
            }
            6 => drop(self.parts.remove(index)),
            7 => {
                let copy = Part {
                    name: format!("{}{}", layer(&part.name), draw.pick(&ENDS)),
                    ..part.clone()
                };
                self.parts.push(copy);
            }
            8 => part.offsets = Some(json!([any(draw), any(draw)])),
            9 => part.data = draw.bytes(part.data.len()),
            10 => self.parts.push(Part::new(draw)),
            11 => self.text = Some(json!({ "format": any(draw), "text": "x".repeat(draw.below(300)) })),
            _ => {
                if let Some(state) = self.parts.iter_mut().find(|part| part.name.contains("quant_state")) {
                    state.change_state(draw);
                } else {
                    self.parts.swap(0, index);
                }
            }
        }
    }
}

impl Part {
    fn new(draw: &mut Draw) -> Self {
        let name = format!(
            "{}{}",
            draw.pick(&["layer", "double_blocks.0.img_attn.proj", "new"]),
            draw.pick(&ENDS)
        );
        let dtype = (*draw.pick(&DTYPES[..8])).to_owned();
        let mut part = Self {
            name,
            dtype,
            shape: Vec::new(),
            data: Vec::new(),
            offsets: None,
        };
        part.reshape(draw);
        part
    }

    /// Draws another shape, with as many bytes as it takes.
    fn reshape(&mut self, draw: &mut Draw) {
        const SIDES: [u64; 12] = [0, 1, 1, 2, 3, 8, 16, 32, 64, 72, 256, 257];
        let sides: Vec<u64> = (0..draw.below(5)).map(|_| *draw.pick(&SIDES)).collect();
        let width = match self.dtype.as_str() {
            "F64" | "I64" | "U64" | "C64" => 8,
            "F32" | "I32" => 4,
            "F16" | "BF16" | "I16" => 2,
            _ => 1,
        };
        let bytes = sides.iter().product::<u64>() * width;
        if bytes <= LARGEST {
            self.shape = sides.into_iter().map(Value::from).collect();
            let random = draw.once_in(3);
            self.data = if random {
                draw.bytes(bytes as usize)
            } else {
                vec![0x38; bytes as usize]
            };
        }
    }

    /// Mutates bitsandbytes' JSON.
    fn change_state(&mut self, draw: &mut Draw) {
        const FIELDS: [&str; 6] = [
            "quant_type",
            "blocksize",
            "shape",
            "dtype",
            "nested_blocksize",
            "nested_offset",
        ];
        let Ok(Value::Object(mut state)) = serde_json::from_slice(&self.data) else {
            return;
        };
        let field = (*draw.pick(&FIELDS)).to_owned();
        if draw.once_in(6) {
            state.remove(&field);
        } else {
            let value = match field.as_str() {
                "shape" => Value::Array((0..draw.below(4)).map(|_| any(draw)).collect()),
                "quant_type" => json!(draw.pick(&["nf4", "fp4", "int4", ""])),
                _ => any(draw),
            };
            state.insert(field, value);
        }
        self.data = Value::Object(state).to_string().into_bytes();
        self.shape = vec![json!(self.data.len())];
    }
}

/// Draws a JSON value, mostly a number.
fn any(draw: &mut Draw) -> Value {
    match draw.below(16) {
        0 => Value::Null,
        1 => json!("text"),
        2 => json!(-1),
        3 => json!(i64::MIN),
        4 => json!(0.5),
        5 => json!([1, [2]]),
        _ => json!(draw.edge()),
    }
}

/// Returns the layer that a tensor belongs to.
fn layer(name: &str) -> &str {
    let end = ENDS
        .iter()
        .filter(|end| name.ends_with(**end))
        .max_by_key(|end| end.len());
    end.and_then(|end| name.strip_suffix(end)).unwrap_or(name)
}
