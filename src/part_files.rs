//! The files of parts that a pipeline loads, once or for each run.

use std::path::PathBuf;
use std::sync::Arc;

use kontext_core::{Device, Kind, Result};
use kontext_device::memory;
use kontext_dit::{Dit, DitConfig};
use kontext_formats::Quantize;
use kontext_nn::{Offload, Weights};
use kontext_text::{ClipEncoder, T5Encoder, TextEncoder, Tokenizer};
use kontext_vae::Autoencoder;

use crate::checkpoint::Checkpoint;
use crate::kernels::KernelSource;

/// The text encoders' files and their loading options.
pub(crate) struct TextFiles {
    pub(crate) checkpoint: Checkpoint,
    pub(crate) length: usize,
    pub(crate) compute: Kind,
    pub(crate) device: Device,
    pub(crate) left: Offload,
    pub(crate) quantize: Option<Quantize>,
}

impl TextFiles {
    pub(crate) fn open(&self) -> Result<TextEncoder> {
        let Self {
            checkpoint,
            compute,
            device,
            ..
        } = self;
        let clip_tokenizer = Tokenizer::open(&checkpoint.clip_tokenizer)?;
        let t5_tokenizer = Tokenizer::open(&checkpoint.t5_tokenizer)?;
        let clip = ClipEncoder::open(&checkpoint.clip, *compute, *device)?;
        let t5 = T5Encoder::weights(&checkpoint.t5)?.at_most(*compute).device(*device);
        let t5 = t5.offload(self.left).quantized(self.quantize);
        // A prompt is one pass, too short to learn the order from.
        let t5 = if self.left == Offload::All {
            t5.prefetched_in_order()
        } else {
            t5
        };
        let t5 = T5Encoder::from_weights(&t5, &checkpoint.t5, *compute)?;
        Ok(TextEncoder::new(clip, clip_tokenizer, t5, t5_tokenizer)?.max_sequence_length(self.length))
    }
}

/// The transformer's weights and their loading options.
pub(crate) struct TransformerFiles {
    pub(crate) weights: Weights,
    pub(crate) config: DitConfig,
    pub(crate) prefetched: bool,
    pub(crate) kernels: Arc<KernelSource>,
}

impl TransformerFiles {
    pub(crate) fn open(&self, progress: impl FnMut(usize)) -> Result<Dit> {
        let weights = self.weights.clone();
        // A prefetcher lives as long as the transformer that it was made for.
        let weights = if self.prefetched { weights.prefetched() } else { weights };
        let mut dit = Dit::new(&weights, &self.config, progress)?;
        weights.finish()?;
        self.kernels.equip(&mut dit);
        memory::give_back();
        Ok(dit)
    }
}

/// The autoencoder's files and their loading options.
pub(crate) struct VaeFiles {
    pub(crate) path: PathBuf,
    pub(crate) device: Device,
    pub(crate) kernels: Arc<KernelSource>,
}

impl VaeFiles {
    pub(crate) fn open(&self) -> Result<Autoencoder> {
        Ok(self.equipped(self.read()?))
    }

    /// Reads the weights, without a wait for the kernels' compiler.
    pub(crate) fn read(&self) -> Result<Autoencoder> {
        // Held in f32, because one of the conformance modes computes in it; a run in another dtype makes its copy
        // of the weights once.
        let vae = Autoencoder::open(&self.path, Kind::Float, self.device);
        memory::give_back();
        vae
    }

    pub(crate) fn equipped(&self, mut vae: Autoencoder) -> Autoencoder {
        self.kernels.equip_autoencoder(&mut vae);
        vae
    }
}
