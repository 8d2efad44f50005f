//! The trained tensors of a method, the model that they are part of, and the exported file.

use std::collections::BTreeMap;
use std::path::Path;

use kontext::save_part;
use kontext_core::{Device, Error, Kind, ModelPart, Result, Tensor};
use kontext_dit::{Dit, DitConfig, LinearPart, linear_parts};
use kontext_lora::{LoraLayer, save_lora};
use kontext_nn::{Adapters, DoraNorm, LinearAdapter, Weights};
use rand::RngExt;

use super::method::{LoraMethod, Method};
use super::recipe::Recipe;
use crate::base::Base;
use crate::from_scratch::initial_transformer;
use crate::optim::{Learner, LearnerConfig, Params, RESUME};
use crate::run::random::{Stream, generator};

/// Name of a LoRA's file in a run's folder.
pub(crate) const LORA_FILE: &str = "lora.safetensors";
/// Names of an adapter's two factors and, for DoRA, its row norms.
const DOWN: &str = "lora_A";
const UP: &str = "lora_B";
const MAGNITUDE: &str = "lora_magnitude_vector";

/// Trainable tensors and the transformer over them.
#[derive(Debug)]
pub(crate) struct Trained {
    pub(crate) learner: Learner,
    dit: Dit,
    /// The frozen base model, where the objective needs one and the trained values are not adapters on it.
    teacher: Option<Dit>,
    method: Method,
    /// The adapted layers.
    parts: Vec<LinearPart>,
}

impl Trained {
    pub(crate) fn new(recipe: &Recipe, base: &Base, device: Device, kind: Kind) -> Result<Self> {
        let config = LearnerConfig {
            prefix: "",
            optimizer: recipe.optimizer,
            ema: (recipe.ema > 0.0).then_some(recipe.ema),
            clip: recipe.clip,
            part: ModelPart::Transformer,
            hint: RESUME,
        };
        let lora = match &recipe.method {
            Method::Full => {
                let config_of_student = recipe.student(base);
                let params = Params::new(&tensors_of_student(recipe, base)?, device)?;
                let dit = Dit::new(&params.weights().device(device), &config_of_student, |_| ())?;
                let frozen = || -> Result<Dit> {
                    let weights = base.transformer()?.kind(kind).device(device);
                    let teacher = Dit::new(&weights, &base.config, |_| ())?;
                    weights.finish()?;
                    Ok(teacher)
                };
                return Ok(Self {
                    learner: Learner::new(params, config)?,
                    dit,
                    teacher: recipe.objective.has_teacher().then(frozen).transpose()?,
                    method: recipe.method.clone(),
                    parts: Vec::new(),
                });
            }
            Method::Lora(lora) => lora,
        };
        let all = linear_parts(&base.config)?;
        let parts = lora.layers(&all)?;
        let mut tensors = factors(&parts, lora.rank, recipe.seed)?;
        let weights = base.transformer()?;
        if lora.dora {
            tensors.extend(magnitudes(&parts, &all, &weights)?);
        }
        let params = Params::new(&tensors, device)?;
        let weights = weights.kind(kind).device(device);
        let dit = Dit::new(&weights, &base.config, |_| ())?;
        weights.finish()?;
        let trained = Self {
            learner: Learner::new(params, config)?,
            dit,
            teacher: None,
            method: recipe.method.clone(),
            parts,
        };
        trained.set_adapters(lora)?;
        Ok(trained)
    }

    /// Returns the transformer with the current values, for one forward and backward pass. A DoRA's row norms
    /// depend on its factors, so they are recomputed here.
    pub(crate) fn dit(&self) -> Result<&Dit> {
        if let Method::Lora(lora) = &self.method
            && lora.dora
        {
            self.set_adapters(lora)?;
        }
        Ok(&self.dit)
    }

    /// Runs `work` with the base model. Adapters are left out of its passes meanwhile, and are in those
    /// before and after.
    pub(crate) fn with_teacher<T>(&self, work: impl FnOnce(&Dit) -> Result<T>) -> Result<T> {
        let Method::Lora(lora) = &self.method else {
            let teacher = self.teacher.as_ref();
            return work(teacher.ok_or_else(|| Error::bug("no teacher for an objective that has one"))?);
        };
        self.dit.slots().set(&Adapters::new())?;
        let result = work(&self.dit);
        self.set_adapters(lora)?;
        result
    }

    fn set_adapters(&self, lora: &LoraMethod) -> Result<()> {
        let mut adapters = Adapters::new();
        for part in &self.parts {
            let factor = |name: &str| {
                let params = &self.learner.params;
                params
                    .get(&format!("{}.{name}", part.module))
                    .map(Tensor::shallow_clone)
            };
            let (Some(down), Some(up)) = (factor(DOWN), factor(UP)) else {
                continue;
            };
            let adapter = LinearAdapter::low_rank(down, up, scaling(lora), part.start)?;
            let adapter = match factor(MAGNITUDE) {
                Some(magnitude) => adapter.with_magnitude(&magnitude, DoraNorm::Peft)?,
                None => adapter,
            };
            adapters.add(part.layer.clone(), adapter);
        }
        self.dit.slots().set(&adapters)
    }

    /// Writes the values into the run's folder.
    pub(crate) fn export(
        &self,
        out: &Path,
        values: Vec<(String, Tensor)>,
        facts: BTreeMap<String, String>,
    ) -> Result<()> {
        let lora = match &self.method {
            Method::Full => return save_part::transformer(out, values, self.dit.config()),
            Method::Lora(lora) => lora,
        };
        let values: BTreeMap<String, Tensor> = values.into_iter().collect();
        let mut layers = Vec::new();
        for (name, down) in &values {
            let Some(module) = name.strip_suffix(DOWN).map(|m| m.trim_end_matches('.')) else {
                continue;
            };
            let up = values.get(&format!("{module}.{UP}"));
            let up = up.ok_or_else(|| Error::bug(format!("trained values with `{name}` and no `{UP}`")))?;
            // The scale is folded into the saved values: programs differ in where they look for it.
            let magnitude = values.get(&format!("{module}.{MAGNITUDE}")).map(Tensor::shallow_clone);
            let (down, up) = (down.shallow_clone(), up.f_mul_scalar(scaling(lora))?);
            layers.push(LoraLayer {
                module: module.to_owned(),
                down,
                up,
                magnitude,
            });
        }
        save_lora(out.join(LORA_FILE), &layers, facts)
    }
}

impl Recipe {
    /// Returns the configuration of the trained transformer: the base model's, with a guidance embedding if
    /// the objective trains one.
    pub(super) fn student(&self, base: &Base) -> DitConfig {
        DitConfig {
            guidance_embed: base.config.guidance_embed || self.objective.guided().is_some(),
            ..base.config.clone()
        }
    }
}

/// Returns the base model's tensors. A new guidance embedding starts without a change: its last layer is
/// zero.
fn tensors_of_student(recipe: &Recipe, base: &Base) -> Result<Vec<(String, Tensor)>> {
    let mut tensors = base.transformer_tensors()?;
    let config = recipe.student(base);
    if config.guidance_embed && !base.config.guidance_embed {
        for (name, value) in initial_transformer(&config, recipe.seed)? {
            if name.starts_with("guidance_in.out_layer.") {
                tensors.push((name, value.f_zeros_like()?));
            } else if name.starts_with("guidance_in.") {
                tensors.push((name, value));
            }
        }
    }
    Ok(tensors)
}

fn scaling(lora: &LoraMethod) -> f64 {
    lora.alpha.map_or(1.0, |alpha| alpha / lora.rank as f64)
}

/// Draws the initial factors as peft does: `down` uniform, `up` zero, so that the adapter starts as the
/// identity.
fn factors(parts: &[LinearPart], rank: i64, seed: u64) -> Result<Vec<(String, Tensor)>> {
    let mut tensors = Vec::new();
    for (index, part) in parts.iter().enumerate() {
        let mut rng = generator(seed, Stream::Initial, index as u64);
        let bound = 1.0 / (part.input as f32).sqrt();
        let values: Vec<f32> = (0..rank * part.input)
            .map(|_| rng.random_range(-bound..bound))
            .collect();
        let down = Tensor::f_from_slice(&values)?.f_reshape([rank, part.input])?;
        let up = Tensor::f_zeros([part.rows, rank], (Kind::Float, Device::Cpu))?;
        tensors.extend([
            (format!("{}.{DOWN}", part.module), down),
            (format!("{}.{UP}", part.module), up),
        ]);
    }
    Ok(tensors)
}

/// Returns the initial row norms: those of the base weights, so that the adapter starts as the identity.
fn magnitudes(parts: &[LinearPart], all: &[LinearPart], weights: &Weights) -> Result<Vec<(String, Tensor)>> {
    let mut magnitudes = Vec::with_capacity(parts.len());
    // The parts of a fused layer are adjacent, so it is read once.
    for parts in parts.chunk_by(|a, b| a.layer == b.layer) {
        let Some(first) = parts.first() else { continue };
        let rows: i64 = all
            .iter()
            .filter(|part| part.layer == first.layer)
            .map(|part| part.rows)
            .sum();
        let name = format!("{}.weight", first.layer);
        let weight = weights.clone().kind(Kind::Float).tensor(&name, &[rows, first.input])?;
        let lengths = weight.f_norm_scalaropt_dim(2.0, [1_i64], false)?;
        for part in parts {
            let own = lengths.f_narrow(0, part.start, part.rows)?;
            magnitudes.push((format!("{}.{MAGNITUDE}", part.module), own));
        }
    }
    Ok(magnitudes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn factors_begin_without_a_change() {
        let part = LinearPart {
            layer: "img_in".to_owned(),
            module: "x_embedder".to_owned(),
            start: 0,
            rows: 5,
            input: 4,
            swapped: false,
        };
        let tensors = factors(&[part], 2, 0).unwrap();
        assert!(tensors[0].1.abs().max().double_value(&[]) <= 0.5);
        assert_eq!((tensors[0].1.size(), tensors[1].1.size()), (vec![2, 4], vec![5, 2]));
        assert_eq!(tensors[1].1.abs().sum(Kind::Float).double_value(&[]), 0.0);
    }
}
