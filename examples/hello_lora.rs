//! Generates an image with a LoRA: `cargo xtask run --release --example hello_lora`.

use kontext::crates::kontext_core::noise;
use kontext::crates::kontext_formats::save;
use kontext::{Device, Kind, Pipeline, Request};

const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/models/kontext-emoji");

fn main() -> kontext::Result<()> {
    // Random matrices of rank 8 for one layer, in the form of a trained LoRA.
    let name = |matrix| format!("transformer.transformer_blocks.0.ff.net.0.proj.lora_{matrix}.weight");
    let random = |shape, seed| noise::randn(shape, seed, Kind::Float, Device::Cpu);
    let lora = [(name("A"), random(&[8, 192], 1)?), (name("B"), random(&[768, 8], 2)?)];
    save("hello-lora.safetensors", &lora, None)?;

    let pipe = Pipeline::builder().lora("hello-lora.safetensors", 0.05).load(MODEL)?;
    let request = Request::generate("a red heart, 3d style").seed(1);
    pipe.run(&request)?.save("hello-lora.png")
}
