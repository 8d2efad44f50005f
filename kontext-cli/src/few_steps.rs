//! The table of few-step models: a teacher and its students on held-out edits, by number of steps.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use kontext::image::RgbImage;
use kontext::{Lora, Pipeline, PipelineBuilder, Sampler, Weights};
use kontext_bench::edit::HeldOut;
use kontext_bench::few_steps::{Row, Table};
use kontext_bench::metrics::{Features, Kid, diversity};

use crate::held_out::HeldOutEdits;
use crate::progress::above;

/// Distance of the seeds of an edit's two results: more than there are edits. Seeds that agree in their lower 32 bits
/// give the same noise, as in torch.
const OTHER_SEED: u64 = 1 << 20;

/// Choice of edits and runs.
#[derive(Debug, Clone)]
pub struct Options {
    /// The dataset's folder.
    pub data: PathBuf,
    /// Its split.
    pub split: String,
    /// Number of edits, taken evenly from those of the split with one reference image.
    pub most: usize,
    /// Numbers of steps.
    pub steps: Vec<usize>,
    /// Samplers. At one step all are the same, so that only the first runs.
    pub samplers: Vec<Sampler>,
    /// Seed of the first edit's noise; the next ones have seed + 1, seed + 2, …
    pub seed: u64,
    /// Number of edits that run a second time under another seed, for the diversity; 0 leaves it out.
    pub diverse: usize,
    /// Number of steps of the first model whose KID, by the first sampler, the others are compared with.
    pub baseline: Option<usize>,
}

/// A model of the table.
#[derive(Debug, Clone)]
pub struct Contender {
    /// Its name in the table.
    pub name: String,
    /// The model's folder.
    pub model: PathBuf,
    /// The options of loading it.
    pub builder: PipelineBuilder,
}

impl Contender {
    /// Returns the contender of a student: a LoRA on the model, a transformer instead of the model's, or a model of its
    /// own, recognised by its content. A LoRA has the scale that its file asks for, else 1. The name is that of the file
    /// or folder.
    ///
    /// # Errors
    /// If there is no such file or folder, or it is none of these.
    pub fn student(path: &Path, model: &Path, builder: &PipelineBuilder) -> anyhow::Result<Self> {
        let builder = builder.clone();
        let (model, builder) = match kind(path)? {
            Kind::Model => (path.to_owned(), builder),
            Kind::Transformer => (model.to_owned(), builder.transformer(path)),
            Kind::Lora => (model.to_owned(), builder.use_lora(path)),
        };
        Ok(Self {
            name: Lora::name_of(path),
            model,
            builder,
        })
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Model,
    Transformer,
    Lora,
}

/// Recognises a student by its files, or by the tensors of its only file.
fn kind(path: &Path) -> anyhow::Result<Kind> {
    /// The input projection of the latents, by BFL and diffusers: each transformer has it, and no LoRA.
    const INPUTS: [&str; 2] = ["img_in.weight", "x_embedder.weight"];
    if !path.exists() {
        bail!("there is no {}; name a LoRA, a transformer or a model", path.display());
    }
    if path.join("model_index.json").is_file() || path.join("transformer").is_dir() {
        return Ok(Kind::Model);
    }
    if path.is_dir() && path.join("config.json").is_file() {
        return Ok(Kind::Transformer);
    }
    let none = || format!("{} is no student: no LoRA, transformer or model", path.display());
    let names = Weights::open(Lora::find(path).with_context(none)?)
        .with_context(none)?
        .names();
    let is_input = |name: &String| INPUTS.iter().any(|input| name.ends_with(input));
    Ok(if names.iter().any(is_input) {
        Kind::Transformer
    } else {
        Kind::Lora
    })
}

/// Runs all contenders, one after the other, on the same edits with the same noise, and measures the results. The first
/// row is the autoencoder's: the truths encoded and decoded, by that of the first contender. Without a feature network
/// there is no KID.
///
/// No run finds prompts or images encoded by an earlier one, so the seconds are those of a whole run.
///
/// # Errors
/// If there is no contender, a model or the dataset cannot be used, or a run fails.
pub fn table(contenders: &[Contender], options: &Options, features: Option<&Features>) -> anyhow::Result<Table> {
    let load = |contender: &Contender| -> anyhow::Result<Pipeline> {
        let builder = contender.builder.clone().encoding_cache(0);
        builder
            .load(&contender.model)
            .with_context(|| format!("cannot load {}", contender.name))
    };
    let first = contenders.first().context("no model to measure")?;
    let mut pipe = load(first)?;
    let edits = HeldOutEdits::open(&options.data, &options.split, options.most, &pipe)?;
    let kid = features.map(|features| edits.kid(features)).transpose()?;
    let mut table = Table {
        kid: kid.as_ref().map(|kid| kid.name().to_owned()),
        rows: vec![reconstruction(edits.known(), kid.as_ref())?],
        baseline: None,
    };
    for (index, contender) in contenders.iter().enumerate() {
        if index > 0 {
            pipe = load(contender)?;
        }
        // The first run of a model allocates its memory.
        edits.run(&pipe, "starting", 1, |request, _| request.steps(1))?;
        for (sampler, steps) in runs(options) {
            let row = row(&pipe, &edits, contender, (sampler, steps), options, kid.as_ref())?;
            let decibels = row.quality.psnr.mean;
            above(format_args!(
                "{}, {sampler}, {steps} steps: {decibels:.2} dB",
                row.model
            ));
            table.rows.push(row);
        }
        if index == 0 {
            // The first match is of the first sampler.
            let steps = options.baseline;
            table.baseline = table
                .rows
                .iter()
                .position(|row| row.steps.is_some() && row.steps == steps);
        }
    }
    Ok(table)
}

/// Returns the runs of a model: each sampler at all numbers of steps, and at one step the first sampler only.
fn runs(options: &Options) -> Vec<(Sampler, usize)> {
    let first = options.samplers.first().copied();
    let of = |sampler: Sampler| {
        let steps = options.steps.iter().copied();
        let steps = steps.filter(move |steps| *steps > 1 || Some(sampler) == first);
        steps.map(move |steps| (sampler, steps))
    };
    options.samplers.iter().copied().flat_map(of).collect()
}

/// Returns the row of the truths by the autoencoder.
fn reconstruction(known: &HeldOut, kid: Option<&Kid<'_>>) -> anyhow::Result<Row> {
    Ok(Row {
        model: "the autoencoder's truths".to_owned(),
        sampler: String::new(),
        steps: None,
        quality: known.measure(known.reconstructions(), kid)?,
        diversity: None,
        seconds: None,
    })
}

fn row(
    pipe: &Pipeline,
    edits: &HeldOutEdits,
    contender: &Contender,
    (sampler, steps): (Sampler, usize),
    options: &Options,
    kid: Option<&Kid<'_>>,
) -> anyhow::Result<Row> {
    let run = |label, count, seed: u64| {
        edits.run(pipe, label, count, |request, index| {
            request
                .sampler(sampler)
                .steps(steps)
                .seed(seed.wrapping_add(index as u64))
        })
    };
    let results = run("editing", edits.known().count(), options.seed)?;
    let again = run("other seed", options.diverse, options.seed.wrapping_add(OTHER_SEED))?;
    Ok(Row {
        model: contender.name.clone(),
        sampler: sampler.to_string(),
        steps: Some(steps),
        quality: edits.known().measure(&results.images, kid)?,
        diversity: mean_diversity(&results.images, &again.images)?,
        seconds: Some(results.seconds),
    })
}

/// Averages the diversity of the two results of each edit that has two.
fn mean_diversity(images: &[RgbImage], again: &[RgbImage]) -> kontext::Result<Option<f64>> {
    let each = images.iter().zip(again).map(|(a, b)| diversity(&[a, b]));
    let each = each.collect::<kontext::Result<Vec<f64>>>()?;
    Ok((!each.is_empty()).then(|| each.iter().sum::<f64>() / each.len() as f64))
}

#[cfg(test)]
mod tests {
    use kontext::crates::kontext_dit::linear_parts;
    use kontext::crates::kontext_lora::{LoraLayer, save_lora};
    use kontext::{Checkpoint, Device, LoadedLora, LoraDefaults, Tensor};

    use super::*;

    #[test]
    fn a_lora_has_the_scale_that_its_file_asks_for() {
        let folder = tempfile::tempdir().unwrap();
        let (model, file) = (folder.path().join("model"), folder.path().join("student.safetensors"));
        kontext::random_model(&model, 7, kontext::Layout::Diffusers).unwrap();
        let (_, config) = Checkpoint::find(&model).unwrap().open_transformer().unwrap();
        let part = linear_parts(&config).unwrap().remove(0);
        let ones = |shape: [i64; 2]| Tensor::f_ones(shape, (kontext::Kind::Float, Device::Cpu)).unwrap();
        let layer = LoraLayer {
            module: part.module.clone(),
            down: ones([1, part.input]),
            up: ones([part.rows, 1]),
            magnitude: None,
        };
        let asks = LoraDefaults {
            scale: Some(0.7),
            ..LoraDefaults::default()
        };
        save_lora(&file, &[layer], asks.to_facts()).unwrap();
        let builder = Pipeline::builder().device(Device::Cpu);
        let student = Contender::student(&file, &model, &builder).unwrap();
        let pipe = student.builder.load(&model).unwrap();
        assert_eq!(student.name, "student");
        let loras = pipe.loras();
        assert_eq!(loras.iter().map(LoadedLora::scale).collect::<Vec<_>>(), [0.7]);
    }

    #[test]
    fn one_step_is_run_by_the_first_sampler_only() {
        let options = Options {
            data: PathBuf::new(),
            split: "test".to_owned(),
            most: 1,
            steps: vec![1, 4],
            samplers: vec![Sampler::Heun, Sampler::Consistency],
            seed: 0,
            diverse: 0,
            baseline: None,
        };
        let expected = [(Sampler::Heun, 1), (Sampler::Heun, 4), (Sampler::Consistency, 4)];
        assert_eq!(runs(&options), expected);
    }
}
