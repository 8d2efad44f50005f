//! A tiny model with LoRAs.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use kontext::crates::kontext_core::noise;
use kontext::{Checkpoint, Device, Kind, Layout, Pipeline, Request, Tensor, Weights, random_model};
use kontext_dit::linear_parts;
use kontext_lora::{LoraLayer, save_lora};

/// A tiny model in a folder, and two LoRAs for it.
pub struct Model {
    folder: tempfile::TempDir,
}

impl Model {
    pub fn new() -> Self {
        let model = Self {
            folder: tempfile::tempdir().unwrap(),
        };
        random_model(model.path(), 7, Layout::Diffusers).unwrap();
        let (_, config) = Checkpoint::find(model.path()).unwrap().open_transformer().unwrap();
        for (name, seed) in [("red", 1), ("blue", 2)] {
            let mut modules = Vec::new();
            for (index, part) in linear_parts(&config).unwrap().iter().enumerate() {
                let draw = |shape: &[i64], at: u64| {
                    noise::randn(shape, 1000 * seed + 2 * index as u64 + at, Kind::Float, Device::Cpu)
                };
                let (down, up) = (
                    draw(&[2, part.input], 0).unwrap(),
                    draw(&[part.rows, 2], 1).unwrap() * 0.02,
                );
                modules.push(LoraLayer {
                    module: part.module.clone(),
                    down,
                    up,
                    magnitude: None,
                });
            }
            save_lora(model.lora(name), &modules, BTreeMap::new()).unwrap();
        }
        model
    }

    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    pub fn lora(&self, name: &str) -> PathBuf {
        self.folder.path().join(format!("{name}.safetensors"))
    }

    /// Writes a LoRA for the first layer of CLIP's MLP.
    pub fn text_lora(&self) -> PathBuf {
        let path = self.lora("text");
        let ones = |shape: &[i64]| Tensor::ones(shape, (Kind::Float, Device::Cpu)) * 0.1;
        let weights = Weights::open(Checkpoint::find(self.path()).unwrap().clip).unwrap();
        let shape = weights.shape_of("text_model.encoder.layers.0.mlp.fc1.weight").unwrap();
        let name = |leaf: &str| format!("lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_{leaf}.weight");
        let tensors = [(name("down"), ones(&[2, shape[1]])), (name("up"), ones(&[shape[0], 2]))];
        kontext_formats::save(&path, &tensors, None).unwrap();
        path
    }

    pub fn load(&self, loras: &[(&str, f64)]) -> Pipeline {
        let builder = Pipeline::builder().device(Device::Cpu);
        let builder = loras
            .iter()
            .fold(builder, |b, (name, scale)| b.lora(self.lora(name), *scale));
        builder.load(self.path()).unwrap()
    }
}

/// Runs a small generation.
pub fn image(pipe: &Pipeline) -> Vec<u8> {
    pipe.run(&cat()).unwrap().image.into_raw()
}

/// Returns the request of [`image`].
pub fn cat() -> Request {
    Request::generate("a cat").size(32, 32).steps(2).seed(3)
}
