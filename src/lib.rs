#![doc = include_str!("../README.md")]

mod assemble;
mod blend;
mod builder;
mod checkpoint;
mod compute;
mod defaults;
mod distance;
pub mod doctor;
mod encode;
mod event;
mod export;
mod fp8;
mod frozen;
mod into_image;
pub mod io;
mod kernels;
mod load;
mod lora;
mod mask;
mod memory;
mod output;
mod part_files;
mod pipeline;
mod placement;
mod plan;
mod preview;
mod registration;
mod request;
mod resolved;
pub mod session;
mod stream;
mod threads;
mod upscale;
mod warning;

pub use builder::{Parts, PipelineBuilder};
pub use checkpoint::{Checkpoint, Layout, file_digest};
pub use compute::{Compute, LARGE_TRANSFORMER, LEAST_GAIN};
pub use defaults::ModelDefaults;
pub use doctor::doctor;
pub use event::{Cancel, Event};
pub use export::{ModelSizes, quantize, random_model, save_part};
pub use fp8::Fp8Products;
pub use into_image::IntoImage;
#[doc(no_inline)]
pub use io::{free_memory, image_from_bytes, open_image};
pub use load::LoadProgress;
pub use lora::{LoadedLora, LoraScale, LoraUse};
pub use mask::{Mask, MaskContext, MaskSettings, Outpaint, OutpaintExtent, OutpaintFill, Region, Segmenter};
pub use memory::{MemoryPlan, StageMemory};
pub use output::Output;
pub use pipeline::Pipeline;
pub use placement::Placement;
pub use plan::{MaskPlan, Plan, ReferencePlan, RunFlops};
pub use preview::{Preview, PreviewFactors, PreviewMethod};
pub use registration::Registration;
pub use request::Request;
pub use session::Session;
pub use stream::{RunStream, RunStreamIter, StreamEvent};
pub use threads::{RunThreads, Threads};
pub use upscale::{LanczosUpscaler, Upscaler, upscale};
pub use warning::Warning;

/// The crate [`image`], in the version whose images requests take and outputs hold.
#[doc(no_inline)]
pub use image;
#[doc(no_inline)]
pub use kontext_core::{
    CheckpointError, Conditioning, Device, Error, Kind, ModelPart, Result, Stage, Tensor, Tokens, TorchError,
};
#[doc(no_inline)]
pub use kontext_dit::{
    Dit, DitConfig, EditedTokens, FirstBlock, MagCache, ReferenceReuse, Refresh, StepCache, StepWork, Taylor, TeaCache,
};
#[doc(no_inline)]
pub use kontext_formats::Quantize;
pub use kontext_lora::{Lora, LoraDefaults, LoraFamily, LoraForm, LoraOptions, LoraReport, LoraTarget, Unmatched};
pub use kontext_nn::{Attention, AttentionKernel, Weights};
#[doc(no_inline)]
pub use kontext_sampler::{
    CfgMode, Conformance, Grid, GuidanceSchedule, References, Sampler, Schedule, Shift, Size, ids::Origin,
};
#[doc(no_inline)]
pub use kontext_text::{ClipConfig, T5Config, TextEncoder, Truncation, Unknown, Unseen};
#[doc(no_inline)]
pub use kontext_vae::{Autoencoder, Tiling, VaeConfig};
/// The crate [`ndarray`], in the version whose arrays are the latents and the noise of a run.
#[doc(no_inline)]
pub use ndarray;
/// The crate [`tch`], in the version whose [`Tensor`], [`Device`] and [`Kind`] are those of this library.
#[doc(no_inline)]
pub use tch;

/// The crates of this library, for callers who assemble their own pipeline.
pub mod crates {
    #[doc(no_inline)]
    pub use {
        kontext_core, kontext_device, kontext_dit, kontext_formats, kontext_lora, kontext_nn, kontext_sampler,
        kontext_text, kontext_vae,
    };
}

/// Design notes.
#[doc = include_str!("../DESIGN.md")]
pub mod _design {}

/// The changelog.
#[doc = include_str!("../CHANGELOG.md")]
pub mod _changelog {}
