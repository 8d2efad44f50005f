//! A loaded model: its parts, and its plans before a run.

mod adapted;
mod kept;
mod loras;
mod references;
mod run;
mod shortage;
mod texts;
mod unload;

use std::path::Path;
use std::sync::Arc;

use kontext_core::{Device, Error, Kind, Result};
use kontext_dit::{Dit, DitConfig};
use kontext_text::TextEncoder;
use kontext_vae::{Autoencoder, Tiling};

use self::adapted::PreparedLoras;
pub(crate) use self::kept::Kept;
pub(crate) use self::run::Finished;
use crate::kernels::{KernelOptions, KernelSource};
use crate::memory::Footprint;
use crate::placement::{Arrangement, Slot};
use crate::plan::ModelFacts;
use crate::{Checkpoint, MemoryPlan, Parts, PipelineBuilder, Placement, Plan, Request};

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
    files: Option<Files>,
    loras: PreparedLoras,
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

/// The dtype that a run follows, and the one it computes in (they differ on the CPU).
#[derive(Debug, Clone, Copy)]
pub(crate) struct Precision {
    pub(crate) dtype: Kind,
    pub(crate) compute: Kind,
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

    /// Creates a pipeline from parts in memory.
    pub(crate) fn of(
        parts: Parts,
        precision: Precision,
        device: Device,
        tiling: Option<Tiling>,
        kernels: &KernelOptions,
    ) -> Result<Self> {
        let Parts {
            text,
            mut dit,
            vae,
            shift,
            defaults,
        } = parts;
        fit(&text, &vae, dit.config())?;
        let facts = ModelFacts::new(dit.config(), shift, text.sequence_length(), defaults);
        let config = dit.config().clone();
        let source = KernelSource::begin(kernels, &config, device, precision.compute);
        if kernels.wanted {
            source.equip(&mut dit);
        } else {
            dit.set_kernels(None);
        }
        let slots = PartSlots {
            text: Slot::given(text),
            dit: Slot::given(dit),
            vae: Slot::given(vae),
            config,
            kernels: Arc::new(source),
        };
        Ok(Self::new(slots, facts, precision, device, tiling))
    }

    pub(crate) fn new(
        parts: PartSlots,
        facts: ModelFacts,
        precision: Precision,
        device: Device,
        tiling: Option<Tiling>,
    ) -> Self {
        Self {
            parts,
            facts,
            precision,
            device,
            tiling,
            files: None,
            loras: PreparedLoras::default(),
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
        self.chosen_loras(request)?;
        Plan::new(request, &self.facts)
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
