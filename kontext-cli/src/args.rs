//! Command-line options shared by several programs: of loading a model, and of one run.

use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args;
use kontext::image::RgbImage;
use kontext::io::{EmbeddedProfile, OpenOptions};
use kontext::{
    Attention, Conformance, Device, Fp8Products, GuidanceSchedule, Pipeline, PipelineBuilder, Placement, Quantize,
    ReferenceReuse, References, Request, Sampler, StepCache, Threads,
};
use kontext_core::array;
use kontext_device::device;

pub use crate::values::{ConformArg, DtypeArg, ReferencesArg, color, free_text, positive, whole};
use crate::{PartArgs, PreviewArgs, cache};

/// Options of loading a model.
#[derive(Debug, Args)]
pub struct LoadArgs {
    /// A LoRA's file, or its folder; may be given several times
    #[arg(long, value_name = "FILE")]
    pub lora: Vec<PathBuf>,
    /// Scales of the LoRAs, in their order; if not given, those that their files ask for, or 1
    #[arg(
        long,
        alias = "lora-strength",
        value_name = "X",
        allow_negative_numbers = true,
        requires = "lora"
    )]
    pub lora_scale: Vec<f64>,
    /// Ignore tensors of the LoRAs that match nothing in the model, if their names match: '*_norm.*'; may be
    /// given several times
    #[arg(long, value_name = "PATTERN", requires = "lora")]
    pub allow_unmatched: Vec<String>,
    /// Accept LoRAs that change nothing
    #[arg(long, requires = "lora")]
    pub allow_no_effect: bool,
    /// cpu, cuda or cuda:N; the best there is if not given
    #[arg(long)]
    pub device: Option<String>,
    /// bf16 on CUDA and f32 on the CPU if not given
    #[arg(long, value_enum)]
    pub dtype: Option<DtypeArg>,
    /// Kind of arithmetic on a CPU; if not given, f32, or bf16 for a large model where it was measured to be faster
    #[arg(long, value_enum)]
    pub compute: Option<DtypeArg>,
    /// Placement of the model's parts in memory: auto, resident, staged or streamed
    #[arg(long, default_value_t)]
    pub placement: Placement,
    /// Pack the transformer's blocks as they are loaded: q8_0, fp8, int8, q5_1, q5_0, q4_1 or q4_0
    #[arg(long, value_name = "FORMAT")]
    pub quantize: Option<Quantize>,
    /// The same for T5
    #[arg(long, value_name = "FORMAT")]
    pub quantize_t5: Option<Quantize>,
    /// Products of the transformer's fp8 weights in fp8: auto, on cards that have it; always, on a CPU with the same
    /// roundings; or never
    #[arg(long, value_name = "WHEN", default_value_t)]
    pub fp8_products: Fp8Products,
    /// Kernel of the attention: auto, cudnn, flash, memory-efficient, math, flash3=FILE or flash3-fp8=FILE
    #[arg(long, value_name = "KERNEL", default_value_t)]
    pub attention: Attention,
    /// Threads of a run on the CPU: auto, by the work; or a number. Runs of this program take turns
    #[arg(long, value_name = "N", default_value_t)]
    pub threads: Threads,
    /// Compute transformer and autoencoder by libtorch's operations only, without the kernels for CUDA devices
    #[arg(long)]
    pub no_kernels: bool,
    /// Single parts.
    #[command(flatten)]
    pub parts: PartArgs,
}

impl LoadArgs {
    /// Returns a pipeline's builder with these options.
    ///
    /// # Errors
    /// If the device does not exist; those of [`LoadArgs::loras`].
    pub fn builder(&self) -> anyhow::Result<PipelineBuilder> {
        let mut builder = self
            .parts
            .apply(Pipeline::builder())
            .placement(self.placement)
            .attention(self.attention.clone())
            .fp8_products(self.fp8_products)
            .threads(self.threads);
        builder = builder.device(device(self.device.as_deref())?);
        if let Some(dtype) = self.dtype {
            builder = builder.dtype(dtype.kind());
        }
        if let Some(compute) = self.compute {
            builder = builder.compute(compute.kind());
        }
        if let Some(to) = self.quantize {
            builder = builder.quantize(to);
        }
        if let Some(to) = self.quantize_t5 {
            builder = builder.quantize_t5(to);
        }
        builder = builder.kernels(!self.no_kernels);
        if let Some(folder) = cache::folder() {
            builder = builder.kernel_cache(folder.join("kernels"));
        }
        for lora in self.loras()? {
            builder = builder.use_lora(lora);
        }
        Ok(builder)
    }
}

/// Options of one run of the pipeline.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// Folder of the model: a diffusers checkpoint, or BFL / ComfyUI single files.
    /// Without it, the small model in models/kontext-emoji
    #[arg(long, value_name = "DIR")]
    pub model: Option<PathBuf>,
    /// Make a model of the published size (12 B) with RANDOM weights on the device, for timing
    #[arg(long, conflicts_with_all = ["model", "placement", "quantize", "quantize_t5", "fp8_products", "fuse_loras", "memory"])]
    pub full_size: bool,
    /// Options of loading it.
    #[command(flatten)]
    pub load: LoadArgs,
    /// Add the LoRAs to the weights at once: steps take no longer than without
    #[arg(long, requires = "lora")]
    pub fuse_loras: bool,
    /// Prompt for T5; --prompt is then for CLIP only
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true, value_parser = free_text, requires = "prompt")]
    pub prompt_2: Option<String>,
    /// Negative prompt; used with --true-cfg above 1
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true, value_parser = free_text)]
    pub negative_prompt: Option<String>,
    /// Negative prompt for T5; --negative-prompt is then for CLIP only
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true, value_parser = free_text)]
    pub negative_prompt_2: Option<String>,
    /// Parentheses in the prompts weigh words as in ComfyUI: '(red)' by 1.1, '(red:1.3)' by 1.3; '\\(' is a parenthesis
    #[arg(long)]
    pub prompt_weights: bool,
    /// Scale of true classifier-free guidance; above 1 each step runs the model twice
    #[arg(long, value_name = "X", default_value_t = 1.0, allow_negative_numbers = true)]
    pub true_cfg: f64,
    /// Width of the result in pixels, a multiple of 16
    #[arg(long, value_parser = positive::<u32>, allow_negative_numbers = true)]
    pub width: Option<u32>,
    /// Height of the result in pixels, a multiple of 16
    #[arg(long, value_parser = positive::<u32>, allow_negative_numbers = true)]
    pub height: Option<u32>,
    /// Pixels of the result, if width and height are not given
    #[arg(long, value_name = "PIXELS", value_parser = positive::<u64>, allow_negative_numbers = true)]
    pub max_area: Option<u64>,
    /// Keep the size that the model worked at, instead of the input's
    #[arg(long)]
    pub native_size: bool,
    /// Sampling steps
    #[arg(long, value_parser = positive::<usize>, allow_negative_numbers = true)]
    pub steps: Option<usize>,
    /// Skip steps, at some loss: off, magcache, first-block, teacache or taylor; with parameters as in
    /// magcache:threshold=0.1,most_skips=5
    #[arg(long, value_name = "MODE", default_value_t)]
    pub step_cache: StepCache,
    /// Compute fewer tokens in some steps, at some loss: references or region; with parameters as in
    /// references:every=7 or region:threshold=0.9
    #[arg(long, value_name = "MODE")]
    pub reference_reuse: Option<ReferenceReuse>,
    /// Rule of a step: euler, consistency (adds noise; for models of few steps), heun or dpmpp_2m; that of the LoRA
    /// or the model if not given
    #[arg(long, value_name = "NAME")]
    pub sampler: Option<Sampler>,
    /// Fixed shift of the noise levels instead of the model's
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    pub shift: Option<f64>,
    /// Guidance value; if not given, that of the LoRA or the model, else 2.5 as in BFL's code, or 3.5 as in diffusers
    /// with --conform diffusers
    #[arg(long, allow_negative_numbers = true)]
    pub guidance: Option<f64>,
    /// Guidance values of the steps with their numbers of steps: 4*8,2.5*20 for 28
    #[arg(long, value_name = "VALUES", allow_hyphen_values = true, conflicts_with = "guidance")]
    pub guidance_schedule: Option<GuidanceSchedule>,
    /// Seed of the noise; drawn and printed if not given
    #[arg(long, value_parser = whole, allow_negative_numbers = true)]
    pub seed: Option<u64>,
    /// Number of images, with seeds s, s + 1, …; those after the first are numbered: out-1.png, out-2.png, …
    #[arg(long, default_value_t = 1, value_parser = positive::<usize>, allow_negative_numbers = true)]
    pub batch: usize,
    /// Positions of several reference images
    #[arg(long, value_enum, default_value_t)]
    pub references: ReferencesArg,
    /// Print the planned and the measured memory at the end
    #[arg(long)]
    pub memory: bool,
    /// Follow the conventions of another program exactly
    #[arg(long, value_enum)]
    pub conform: Option<ConformArg>,
    /// safetensors file with `latents` [1, L, 64] in packed form: replaces the seeded noise
    #[arg(long, value_name = "FILE")]
    pub noise: Option<PathBuf>,
    /// Previews.
    #[command(flatten)]
    pub previews: PreviewArgs,
    /// Write the tensors of every stage to this safetensors file
    #[arg(long, value_name = "FILE")]
    pub dump: Option<PathBuf>,
    /// Replace existing files also where they are numbered images of a batch, or files that this run reads
    #[arg(long)]
    pub overwrite: bool,
    /// Print the plan (sizes, tokens, steps, memory) and stop
    #[arg(long)]
    pub plan: bool,
}

impl RunArgs {
    /// Sets these options in a request.
    ///
    /// # Errors
    /// If the file of `--noise` cannot be used.
    pub fn apply(&self, mut request: Request) -> anyhow::Result<Request> {
        request.prompt_2 = self.prompt_2.clone();
        request.negative_prompt = self.negative_prompt.clone();
        request.negative_prompt_2 = self.negative_prompt_2.clone();
        request.prompt_weights = self.prompt_weights;
        request.true_cfg = self.true_cfg;
        request.width = self.width;
        request.height = self.height;
        request.max_area = self.max_area;
        request.native_size = self.native_size;
        request.steps = self.steps;
        request.step_cache = self.step_cache;
        request.reference_reuse = self.reference_reuse.clone();
        request.sampler = self.sampler;
        request.shift = self.shift;
        request.guidance = self.guidance;
        request.guidance_schedule = self.guidance_schedule.clone();
        request.seed = self.seed;
        request.batch = self.batch;
        request.references = match self.references {
            ReferencesArg::Offset => References::Offset,
            ReferencesArg::Index => References::Index,
            ReferencesArg::Stitch => References::Stitch,
        };
        request.conformance = self.conformance();
        request.noise = self.noise.as_deref().map(read_noise).transpose()?;
        Ok(self.previews.request(request))
    }
}

impl RunArgs {
    /// Opens an image for the request: with `--conform`, its colour profile is ignored, as the other programs do.
    ///
    /// # Errors
    /// Those of [`OpenOptions::open`].
    pub fn open_image(&self, path: impl AsRef<Path>) -> kontext::Result<RgbImage> {
        self.open_options().open(path)
    }

    /// Returns the options of opening images for the request; see [`RunArgs::open_image`].
    #[must_use]
    pub fn open_options(&self) -> OpenOptions {
        open_options(self.conformance())
    }

    fn conformance(&self) -> Conformance {
        match self.conform {
            None => Conformance::Native,
            Some(ConformArg::Diffusers) => Conformance::Diffusers,
            Some(ConformArg::Bfl) => Conformance::Bfl,
        }
    }
}

/// Returns the options of opening images for a request in these conventions; see [`RunArgs::open_image`].
pub(crate) fn open_options(conformance: Conformance) -> OpenOptions {
    let profile = match conformance {
        Conformance::Native => EmbeddedProfile::Convert,
        Conformance::Diffusers | Conformance::Bfl => EmbeddedProfile::Ignore,
    };
    OpenOptions::new().embedded_profile(profile)
}

/// Returns the device that `--device` names, or the best one.
///
/// # Errors
/// If the text names no device, or the device does not exist.
pub fn device(text: Option<&str>) -> kontext::Result<Device> {
    text.map_or_else(|| Ok(device::best()), device::parse)
}

fn read_noise(path: &Path) -> anyhow::Result<ndarray::ArrayD<f32>> {
    let latents = kontext::Weights::open(path)?.raw("latents");
    let latents = latents.and_then(|latents| array::to_array(&latents));
    latents.context("--noise takes a file that --dump wrote, or one tensor `latents` [batch, tokens, 64]")
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};

    use super::*;

    #[derive(Parser)]
    struct Program {
        #[command(flatten)]
        load: LoadArgs,
    }

    #[test]
    fn the_scale_of_a_lora_may_be_given_under_its_old_name() {
        for flag in ["--lora-scale", "--lora-strength"] {
            let words = ["program", "--lora", "a", "--lora", "b", flag, "0.5", flag, "-1"];
            assert_eq!(
                Program::try_parse_from(words).unwrap().load.lora_scale,
                [0.5, -1.0],
                "{flag}"
            );
        }
        let help = Program::command().render_long_help().to_string();
        assert!(
            help.contains("--lora-scale <X>") && !help.contains("strength"),
            "{help}"
        );
    }

    #[derive(Parser)]
    struct Editor {
        /// A flag that each program has, and some of these need.
        #[arg(long)]
        prompt: Option<String>,
        #[command(flatten)]
        run: RunArgs,
    }

    #[test]
    fn images_keep_their_samples_if_another_program_is_followed() {
        let photo = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../kontext-core/tests/pictures/profiles/p3.png"
        );
        let open = |words: &[&str]| {
            let program = Editor::try_parse_from([&["program"], words].concat()).unwrap();
            assert_eq!(program.prompt, None);
            program.run.open_image(photo).unwrap()
        };
        let samples = OpenOptions::new()
            .embedded_profile(EmbeddedProfile::Ignore)
            .open(photo)
            .unwrap();
        assert_eq!(open(&[]), kontext::open_image(photo).unwrap());
        assert_ne!(open(&[]), samples);
        for conform in ["diffusers", "bfl"] {
            assert_eq!(open(&["--conform", conform]), samples, "{conform}");
        }
    }
}
