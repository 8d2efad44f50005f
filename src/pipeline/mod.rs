//! A loaded model: its parts, and its plans before a run.

mod adapted;
mod computing;
mod damage;
mod encodings;
mod loras;
mod masked_edit;
mod noises;
mod previews;
mod recent;
mod references;
mod results;
mod run;
mod shortage;
mod texts;
mod unload;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use kontext_core::{Device, Error, Kind, Result};
use kontext_dit::{Dit, DitConfig};
use kontext_nn::AttentionBackend;
use kontext_text::TextEncoder;
use kontext_vae::{Autoencoder, Tiling};

use self::adapted::PreparedLoras;
pub(crate) use self::encodings::Encodings;
use self::previews::Previews;
pub(crate) use self::run::Finished;
use crate::kernels::KernelSource;
use crate::memory::Footprint;
use crate::placement::{Arrangement, Slot};
use crate::plan::ModelFacts;
use crate::{Checkpoint, MemoryPlan, PipelineBuilder, Placement, Plan, Request};

/// A loaded model that edits and generates images.
///
/// It is `Send` and `Sync`, and a run does not modify it: any number of threads may run requests on one
/// pipeline, each with its own LoRAs ([`Request::lora`]), and each gets the same bytes as in a serial run.
///
/// # Example
/// ```no_run
/// use kontext::{Pipeline, Request};
/// let pipe = Pipeline::load("FLUX.1-Kontext-dev")?;
/// let cup = kontext::open_image("cup.png")?;
/// let out = pipe.run(&Request::edit(&cup, "replace the logo with the word 'Rust'").seed(7))?;
/// out.save("cup-rust.png")?;
/// # Ok::<(), kontext::Error>(())
/// ```
#[derive(Debug)]
pub struct Pipeline {
    parts: PartSlots,
    facts: ModelFacts,
    precision: Precision,
    device: Device,
    tiling: Option<Tiling>,
    attention: AttentionBackend,
    files: Option<Files>,
    loras: PreparedLoras,
    encodings: Encodings,
    previews: Previews,
    fused: bool,
}

/// The files of a pipeline's parts and their memory footprint.
#[derive(Debug)]
struct Files {
    checkpoint: Checkpoint,
    footprint: Footprint,
    arrangement: Arrangement,
    /// Bytes of device memory that the model may take.
    budget: Option<u64>,
}

/// The parts, in memory or loaded on demand.
#[derive(Debug)]
pub(crate) struct PartSlots {
    pub(crate) text: Slot<TextEncoder>,
    pub(crate) dit: Slot<Dit>,
    pub(crate) vae: Slot<Autoencoder>,
    pub(crate) config: DitConfig,
    pub(crate) kernels: Arc<KernelSource>,
}

/// The dtypes of a pipeline, whatever its runs compute in ([`crate::Compute`]).
#[derive(Debug, Clone, Copy)]
pub(crate) struct Precision {
    /// The dtype that runs follow.
    pub(crate) dtype: Kind,
    /// The dtype that text encoders are built for: f32 on a CPU.
    pub(crate) built: Kind,
    /// The widest dtype of the transformer's plain weights in memory.
    pub(crate) stored: Kind,
}

/// The settings that all runs of a pipeline share.
#[derive(Debug)]
pub(crate) struct Settings {
    pub(crate) precision: Precision,
    pub(crate) device: Device,
    pub(crate) tiling: Option<Tiling>,
    pub(crate) attention: AttentionBackend,
    /// Bytes; `None` for the default.
    pub(crate) encoding_cache: Option<u64>,
    /// A tiny autoencoder.
    pub(crate) preview_decoder: Option<PathBuf>,
}

impl Pipeline {
    /// Loads a model with the default options; see [`PipelineBuilder`].
    ///
    /// # Errors
    /// Those of [`PipelineBuilder::load`].
    pub fn load(folder: impl AsRef<Path>) -> Result<Self> {
        PipelineBuilder::default().load(folder)
    }

    /// Returns a builder, with the options of [`Pipeline::load`] as defaults.
    pub fn builder() -> PipelineBuilder {
        PipelineBuilder::default()
    }

    /// Creates a pipeline without files.
    pub(crate) fn new(parts: PartSlots, facts: ModelFacts, settings: Settings) -> Self {
        let Settings {
            precision,
            device,
            tiling,
            attention,
            encoding_cache,
            preview_decoder,
        } = settings;
        Self {
            parts,
            facts,
            precision,
            device,
            tiling,
            attention,
            files: None,
            loras: PreparedLoras::default(),
            encodings: Encodings::new(encoding_cache.unwrap_or(Encodings::DEFAULT_BYTES)),
            previews: Previews::new(preview_decoder),
            fused: false,
        }
    }

    /// Adds the files that the parts come from.
    pub(crate) fn with_files(
        self,
        checkpoint: Checkpoint,
        footprint: Footprint,
        arrangement: Arrangement,
        budget: Option<u64>,
    ) -> Self {
        Self {
            files: Some(Files {
                checkpoint,
                footprint,
                arrangement,
                budget,
            }),
            ..self
        }
    }

    /// Returns the files of the parts; `None` for a pipeline assembled from given parts.
    #[must_use]
    pub fn checkpoint(&self) -> Option<&Checkpoint> {
        self.files.as_ref().map(|files| &files.checkpoint)
    }

    /// Returns when the parts are in memory; a pipeline assembled from given parts is resident.
    #[must_use]
    pub fn placement(&self) -> Placement {
        self.files
            .as_ref()
            .map_or(Placement::Resident, |files| files.arrangement.placement)
    }

    /// Estimates the memory that a run of this request takes on the device; `None` for a pipeline assembled
    /// from given parts.
    ///
    /// # Errors
    /// Those of [`Pipeline::plan`].
    pub fn memory(&self, request: &Request) -> Result<Option<MemoryPlan>> {
        let plan = self.plan(request)?;
        Ok(self
            .files
            .as_ref()
            .map(|files| files.footprint.plan(&plan, files.arrangement)))
    }

    /// Returns the model's device.
    #[must_use]
    pub fn device(&self) -> Device {
        self.device
    }

    /// Returns the dtype that runs follow.
    #[must_use]
    pub fn dtype(&self) -> Kind {
        self.precision.dtype
    }

    /// Returns the features of a token: the channels of a patch of 2x2 latents.
    pub(crate) fn packed_channels(&self) -> i64 {
        self.facts.packed_channels()
    }

    /// Plans a run of this request. Takes no time.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a request out of range or a LoRA that is not loaded,
    /// [`Error::Checkpoint`] for [`Request::loras`] if LoRAs were fused with the weights.
    pub fn plan(&self, request: &Request) -> Result<Plan> {
        let loras = self.chosen_loras(request)?.defaults();
        Plan::with_loras(request, &self.facts, &loras)
    }
}

/// Checks that the parts fit each other.
pub(crate) fn fit(text: &TextEncoder, vae: &Autoencoder, config: &DitConfig) -> Result<()> {
    let fits = |what: &'static str, got: i64, expected: i64| {
        if got == expected {
            Ok(())
        } else {
            Err(Error::invalid(
                what,
                format!("{expected}, as the transformer takes"),
                got,
            ))
        }
    };
    fits(
        "channels of the VAE, times 4",
        vae.latent_channels() * 4,
        config.in_channels,
    )?;
    fits("width of T5", text.t5().config().d_model, config.context_dim)?;
    fits("width of CLIP", text.clip().config().hidden_size, config.pooled_dim)
}
