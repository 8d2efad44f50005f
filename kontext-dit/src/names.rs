//! Map from BFL's tensor names, which the layers use, to diffusers'.
//!
//! Source: huggingface/diffusers 0.38 `scripts/convert_flux_to_diffusers.py`.

use kontext_formats::TensorMap;

/// Translates a name of `black-forest-labs/flux` to diffusers' tensors.
///
/// diffusers splits the fused projections (`qkv`, `linear1`) and swaps scale and shift of the last
/// modulation.
#[must_use]
pub fn diffusers(name: &str) -> TensorMap {
    let (module, leaf) = name.rsplit_once('.').unwrap_or(("", name));
    // BFL calls norm weights `scale`.
    let leaf = if leaf == "scale" { "weight" } else { leaf };
    let one = |module: String| TensorMap::Name(format!("{module}.{leaf}"));
    let rows = |prefix: String, parts: &[&str]| {
        TensorMap::Rows(parts.iter().map(|p| format!("{prefix}.{p}.{leaf}")).collect())
    };
    if let Some((block, part)) = indexed(module, "double_blocks.") {
        let at = |s: &str| format!("transformer_blocks.{block}.{s}");
        return match part {
            "img_attn.qkv" => rows(at("attn"), &["to_q", "to_k", "to_v"]),
            "txt_attn.qkv" => rows(at("attn"), &["add_q_proj", "add_k_proj", "add_v_proj"]),
            "img_mod.lin" => one(at("norm1.linear")),
            "txt_mod.lin" => one(at("norm1_context.linear")),
            "img_attn.norm.query_norm" => one(at("attn.norm_q")),
            "img_attn.norm.key_norm" => one(at("attn.norm_k")),
            "txt_attn.norm.query_norm" => one(at("attn.norm_added_q")),
            "txt_attn.norm.key_norm" => one(at("attn.norm_added_k")),
            "img_attn.proj" => one(at("attn.to_out.0")),
            "txt_attn.proj" => one(at("attn.to_add_out")),
            "img_mlp.0" => one(at("ff.net.0.proj")),
            "img_mlp.2" => one(at("ff.net.2")),
            "txt_mlp.0" => one(at("ff_context.net.0.proj")),
            "txt_mlp.2" => one(at("ff_context.net.2")),
            other => one(at(other)),
        };
    }
    if let Some((block, part)) = indexed(module, "single_blocks.") {
        let at = |s: &str| format!("single_transformer_blocks.{block}.{s}");
        return match part {
            "linear1" => {
                let attn = ["attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"];
                rows(format!("single_transformer_blocks.{block}"), &attn)
            }
            "linear2" => one(at("proj_out")),
            "modulation.lin" => one(at("norm.linear")),
            "norm.query_norm" => one(at("attn.norm_q")),
            "norm.key_norm" => one(at("attn.norm_k")),
            other => one(at(other)),
        };
    }
    match module {
        "img_in" => one("x_embedder".to_owned()),
        "txt_in" => one("context_embedder".to_owned()),
        "final_layer.linear" => one("proj_out".to_owned()),
        "final_layer.adaLN_modulation.1" => TensorMap::SwapHalves(format!("norm_out.linear.{leaf}")),
        other => match embedder(other) {
            Some(module) => one(module),
            None => TensorMap::Name(name.to_owned()),
        },
    }
}

/// Returns `true` if a tensor, in BFL's or diffusers' naming, belongs to one of the transformer's blocks.
///
/// # Example
/// ```
/// use kontext_dit::names::is_block;
/// assert!(is_block("double_blocks.3.img_attn.qkv.weight") && is_block("single_transformer_blocks.0.proj_out.bias"));
/// assert!(!is_block("img_in.weight"));
/// ```
#[must_use]
pub fn is_block(name: &str) -> bool {
    const BLOCKS: [&str; 4] = [
        "double_blocks.",
        "single_blocks.",
        "transformer_blocks.",
        "single_transformer_blocks.",
    ];
    BLOCKS.iter().any(|start| name.starts_with(start))
}

/// Returns `true` if a tensor, in BFL's or diffusers' naming, belongs to a modulation layer, which is applied
/// once per run.
#[must_use]
pub fn is_modulation(name: &str) -> bool {
    const LAYERS: [&str; 7] = [
        "img_mod.lin",
        "txt_mod.lin",
        "modulation.lin",
        "adaLN_modulation.1",
        "norm1.linear",
        "norm1_context.linear",
        "norm.linear",
    ];
    let module = name.rsplit_once('.').map_or(name, |(module, _)| module);
    module == "norm_out.linear" || LAYERS.iter().any(|layer| module.ends_with(layer))
}

/// Translates an embedder: "time_in.in_layer" to "time_text_embed.timestep_embedder.linear_1".
fn embedder(module: &str) -> Option<String> {
    let (embedder, layer) = module.split_once('.')?;
    let embedder = match embedder {
        "time_in" => "timestep_embedder",
        "guidance_in" => "guidance_embedder",
        "vector_in" => "text_embedder",
        _ => return None,
    };
    let layer = if layer == "in_layer" { "linear_1" } else { "linear_2" };
    Some(format!("time_text_embed.{embedder}.{layer}"))
}

fn indexed<'a>(module: &'a str, prefix: &str) -> Option<(&'a str, &'a str)> {
    module.strip_prefix(prefix)?.split_once('.')
}
