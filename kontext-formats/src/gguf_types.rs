//! Types of GGUF tensors that are not read.

use kontext_core::CheckpointError;

use super::gguf_value::bad;
use super::quant::Format;

/// Types of llama.cpp that are not read here, by number.
///
/// Source: ggml-org/llama.cpp `gguf-py/gguf/constants.py`, `GGMLQuantizationType`.
const OTHER_TYPES: [(u32, &str); 21] = [
    (4, "Q4_2"),
    (5, "Q4_3"),
    (9, "Q8_1"),
    (15, "Q8_K"),
    (16, "IQ2_XXS"),
    (17, "IQ2_XS"),
    (18, "IQ3_XXS"),
    (19, "IQ1_S"),
    (21, "IQ3_S"),
    (22, "IQ2_S"),
    (24, "I8"),
    (25, "I16"),
    (26, "I32"),
    (27, "I64"),
    (28, "F64"),
    (29, "IQ1_M"),
    (34, "TQ1_0"),
    (35, "TQ2_0"),
    (39, "MXFP4"),
    (40, "NVFP4"),
    (41, "Q1_0"),
];

/// Returns the error for a tensor of a type that is not read, with the type's name if it is known.
pub(super) fn unknown(what: &str, number: u32) -> CheckpointError {
    let known: Vec<&str> = Format::ALL
        .iter()
        .filter(|f| f.gguf_type().is_some())
        .map(|f| f.name())
        .collect();
    let known = known.join(", ");
    let stored = match OTHER_TYPES.iter().find(|(other, _)| *other == number) {
        Some((_, name)) => format!("is stored in {name}, which is not read here"),
        None => format!("has the type {number}, which is not known here"),
    };
    bad(format!("{what} {stored}; fetch the model in one of {known}"))
}
