//! Suffixes of tensor names in LoRA files: the part that a tensor has in its layer's adapter.
//!
//! Source: KohakuBlueleaf/LyCORIS 4.1.3 `lycoris/modules/*.py`, `weight_list`; huggingface/peft 0.21
//! `src/peft/utils/save_and_load.py`, `get_peft_model_state_dict` (which removes the adapter's name, and
//! which not every writer calls).

use kontext_nn::DoraNorm;

/// Role of a tensor in a layer's adapter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Leaf {
    Down,
    Up,
    UpBias,
    Alpha,
    PeftMagnitude,
    LycorisMagnitude,
    LokrW1,
    LokrW1A,
    LokrW1B,
    LokrW2,
    LokrW2A,
    LokrW2B,
    HadaW1A,
    HadaW1B,
    HadaW2A,
    HadaW2B,
    Diff,
    DiffBias,
}

impl Leaf {
    pub(super) fn norm(self) -> DoraNorm {
        if self == Self::PeftMagnitude {
            DoraNorm::Peft
        } else {
            DoraNorm::Lycoris
        }
    }
}

/// PEFT's factors, by their parameter and by its ending. In a model's state dict, the name of the adapter
/// comes between the two.
const PEFT: &[(&str, &str, Leaf)] = &[
    ("lora_A", ".weight", Leaf::Down),
    ("lora_A", "", Leaf::Down),
    ("lora_B", ".weight", Leaf::Up),
    ("lora_B", "", Leaf::Up),
    ("lora_B", ".bias", Leaf::UpBias),
    ("lora_magnitude_vector", ".weight", Leaf::PeftMagnitude),
    ("lora_magnitude_vector", "", Leaf::PeftMagnitude),
    ("lokr_w1", "", Leaf::LokrW1),
    ("lokr_w1_a", "", Leaf::LokrW1A),
    ("lokr_w1_b", "", Leaf::LokrW1B),
    ("lokr_w2", "", Leaf::LokrW2),
    ("lokr_w2_a", "", Leaf::LokrW2A),
    ("lokr_w2_b", "", Leaf::LokrW2B),
    ("hada_w1_a", "", Leaf::HadaW1A),
    ("hada_w1_b", "", Leaf::HadaW1B),
    ("hada_w2_a", "", Leaf::HadaW2A),
    ("hada_w2_b", "", Leaf::HadaW2B),
];
/// Suffixes of other programs; the first match wins.
const OTHERS: &[(&str, Leaf)] = &[
    (".lora_down.weight", Leaf::Down),
    (".lora_up.weight", Leaf::Up),
    (".lora.down.weight", Leaf::Down),
    (".lora.up.weight", Leaf::Up),
    (".lora_linear_layer.down.weight", Leaf::Down),
    (".lora_linear_layer.up.weight", Leaf::Up),
    (".down.weight", Leaf::Down),
    (".up.weight", Leaf::Up),
    (".lora.alpha", Leaf::Alpha),
    (".alpha", Leaf::Alpha),
    (".dora_scale", Leaf::LycorisMagnitude),
    (".diff", Leaf::Diff),
    (".diff_b", Leaf::DiffBias),
];

/// A tensor's name, cut at the adapter's factor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Cut<'a> {
    /// The name before the suffix.
    pub(super) module: &'a str,
    pub(super) leaf: Leaf,
    /// The name of PEFT's adapter, if the suffix has one.
    pub(super) adapter: Option<&'a str>,
}

/// Cuts the factor off a tensor's name.
pub(super) fn cut(name: &str) -> Option<Cut<'_>> {
    let of_peft = || {
        PEFT.iter()
            .find_map(|(factor, end, leaf)| peft(name, factor, end, *leaf))
    };
    let of_others = || {
        let (module, leaf) = OTHERS
            .iter()
            .find_map(|(end, leaf)| Some((name.strip_suffix(end)?, *leaf)))?;
        let adapter = None;
        Some(Cut { module, leaf, adapter })
    };
    of_peft().or_else(of_others)
}

fn peft<'a>(name: &'a str, factor: &str, end: &str, leaf: Leaf) -> Option<Cut<'a>> {
    let before = |path: &'a str| path.strip_suffix(factor)?.strip_suffix('.');
    let path = name.strip_suffix(end)?;
    if let Some(module) = before(path) {
        let adapter = None;
        return Some(Cut { module, leaf, adapter });
    }
    // PEFT allows no dot in an adapter's name.
    let (path, adapter) = path.rsplit_once('.')?;
    let named = !matches!(adapter, "" | "weight" | "bias");
    let adapter = Some(adapter);
    before(path)
        .filter(|_| named)
        .map(|module| Cut { module, leaf, adapter })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_factor_of_peft_may_have_any_name_of_an_adapter() {
        for (suffix, leaf, adapter) in [
            ("lora_A.weight", Leaf::Down, None),
            ("lora_A", Leaf::Down, None),
            ("lora_A.default.weight", Leaf::Down, Some("default")),
            ("lora_A.default_0.weight", Leaf::Down, Some("default_0")),
            ("lora_B.water colour.weight", Leaf::Up, Some("water colour")),
            // Names of other programs' factors.
            ("lora_A.up.weight", Leaf::Down, Some("up")),
            ("lora_B.down.weight", Leaf::Up, Some("down")),
            ("lora_B.bias", Leaf::UpBias, None),
            ("lora_B.default_0.bias", Leaf::UpBias, Some("default_0")),
            ("lora_magnitude_vector", Leaf::PeftMagnitude, None),
            (
                "lora_magnitude_vector.default_0.weight",
                Leaf::PeftMagnitude,
                Some("default_0"),
            ),
            (
                "lora_magnitude_vector.default_0",
                Leaf::PeftMagnitude,
                Some("default_0"),
            ),
            ("lokr_w1", Leaf::LokrW1, None),
            ("lokr_w2_a.default_0", Leaf::LokrW2A, Some("default_0")),
            ("hada_w1_b.default_0", Leaf::HadaW1B, Some("default_0")),
            ("lora_down.weight", Leaf::Down, None),
            ("lora.up.weight", Leaf::Up, None),
            ("lora.alpha", Leaf::Alpha, None),
        ] {
            let name = format!("x_embedder.{suffix}");
            let module = "x_embedder";
            assert_eq!(cut(&name), Some(Cut { module, leaf, adapter }), "{suffix}");
        }
    }

    #[test]
    fn what_is_no_factor_is_not_cut() {
        for name in [
            "",
            ".",
            "weight",
            "lora_A.weight",
            "x_embedder.weight",
            "x_embedder.oft_R.weight",
            "x_embedder.lora_A.bias",
            "x_embedder.base_layer.weight",
            "x_embedder.lora_A.a.b.weight",
        ] {
            assert_eq!(cut(name), None, "{name}");
        }
    }
}
