//! Settings of loading that determine results, by name: a run is only continued under the same ones.

use std::collections::BTreeMap;

use kontext::{Attention, Checkpoint, Plan, Threads};

use crate::args::LoadArgs;

/// Returns the version, the digest of a model with its LoRAs, the kind of device, and the options of loading that were
/// given. Of `plan`, any run's, it takes the kinds of arithmetic that were chosen, so that no other machine goes on
/// with other roundings.
///
/// # Errors
/// If a file of the model or of a LoRA cannot be read.
pub fn loading(
    load: &LoadArgs,
    checkpoint: &Checkpoint,
    is_cuda: bool,
    plan: &Plan,
) -> anyhow::Result<BTreeMap<String, String>> {
    let LoadArgs {
        lora_scale,
        dtype,
        quantize,
        quantize_t5,
        threads,
        no_kernels,
        ..
    } = load;
    let mut settings = BTreeMap::new();
    let mut set = |name: &str, value: Option<String>| {
        if let Some(value) = value {
            settings.insert(name.to_owned(), value);
        }
    };
    set("kontext", Some(env!("CARGO_PKG_VERSION").to_owned()));
    set("model", Some(checkpoint.digest(&load.lora_files()?)?));
    set("device", Some(if is_cuda { "cuda" } else { "cpu" }.to_owned()));
    set("dtype", dtype.map(|dtype| format!("{dtype:?}").to_lowercase()));
    // f32, as in earlier runs, is not named.
    let compute = plan.compute.to_string();
    set("arithmetic", (!is_cuda && compute != "f32").then_some(compute));
    set("products", plan.fp8.then(|| "fp8".to_owned()));
    let kernel = plan.attention.filter(|_| load.attention != Attention::default());
    set("attention", kernel.map(|kernel| kernel.to_string()));
    set("threads", (*threads != Threads::default()).then(|| threads.to_string()));
    set("kernels", no_kernels.then(|| "none".to_owned()));
    set("quantize", quantize.map(|to| to.to_string()));
    set("quantize t5", quantize_t5.map(|to| to.to_string()));
    // Named as the option was before `--lora-scale`: earlier runs can be continued.
    set(
        "lora strengths",
        (!lora_scale.is_empty()).then(|| format!("{lora_scale:?}")),
    );
    Ok(settings)
}
