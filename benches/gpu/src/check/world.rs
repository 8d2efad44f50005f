//! Common fixtures of the checks: a small random model in a folder, requests, images.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use anyhow::Context;
use kontext::image::{Rgb, RgbImage};
use kontext::{Device, Kind, Layout, Pipeline, PipelineBuilder, Request, Weights, random_model};
use tempfile::TempDir;

use super::Options;
use super::distance::Trace;

/// Seed of the small random model.
const SEED: u64 = 7;
/// Number of T5 tokens: just enough for different position buckets.
const TEXT: usize = 64;
/// Area of a result in pixels: large enough for some hundred tokens in each attention.
const AREA: u64 = 192 * 192;
/// Number of steps of a run: an error of one step propagates to the next.
const STEPS: usize = 3;

/// Checked dtypes with their names in cases.
pub(super) const KINDS: [(&str, Kind); 2] = [("f32", Kind::Float), ("bf16", Kind::BFloat16)];

/// The small random model, the inputs, and the CPU's results.
pub(super) struct World {
    pub(super) device: Device,
    /// Folder of the small emoji model.
    pub(super) shipped: PathBuf,
    pub(super) inputs: PathBuf,
    /// Folder for images.
    pub(super) out: Option<PathBuf>,
    /// Folder that holds FlashAttention 3.
    pub(super) fa3: Option<PathBuf>,
    folder: TempDir,
    /// CPU runs shared by several checks.
    expected: RefCell<BTreeMap<String, Rc<Trace>>>,
}

impl World {
    pub(super) fn new(options: &Options, device: Device) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        random_model(folder.path().join("model"), SEED, Layout::Diffusers)?;
        Ok(Self {
            device,
            shipped: options.model.clone(),
            inputs: options.inputs.clone(),
            out: options.common.out.clone(),
            fa3: options.common.fa3.clone(),
            folder,
            expected: RefCell::default(),
        })
    }

    /// Returns the folder of the random model.
    pub(super) fn model(&self) -> PathBuf {
        self.folder.path().join("model")
    }

    /// Returns the folder of the same model with its weights in this dtype.
    pub(super) fn stored_in(&self, kind: Kind) -> anyhow::Result<PathBuf> {
        if kind == Kind::Float {
            return Ok(self.model());
        }
        let to = self.folder.path().join(format!("{kind:?}"));
        if to.is_dir() {
            return Ok(to);
        }
        let draft = to.with_extension("new");
        for part in [
            "transformer",
            "text_encoder",
            "text_encoder_2",
            "vae",
            "tokenizer",
            "tokenizer_2",
            "scheduler",
        ] {
            narrow(&self.model().join(part), &draft.join(part), kind).with_context(|| part.to_owned())?;
        }
        std::fs::rename(draft, &to)?;
        Ok(to)
    }

    /// Returns the options of a pipeline for the random model, each of whose runs encodes its prompt and images.
    pub(super) fn builder(device: Device, kind: Kind) -> PipelineBuilder {
        let builder = Pipeline::builder().device(device).dtype(kind);
        builder.max_sequence_length(TEXT).encoding_cache(0)
    }

    /// Loads the random model from its files onto the checked device.
    pub(super) fn pipeline(&self, kind: Kind) -> anyhow::Result<Pipeline> {
        Ok(Self::builder(self.device, kind).load(self.model())?)
    }

    /// Returns the trace computed by `make`, cached by name.
    pub(super) fn expected(
        &self,
        name: &str,
        make: impl FnOnce() -> anyhow::Result<Trace>,
    ) -> anyhow::Result<Rc<Trace>> {
        if let Some(trace) = self.expected.borrow().get(name) {
            return Ok(Rc::clone(trace));
        }
        let trace = Rc::new(make().context("on the CPU")?);
        self.expected.borrow_mut().insert(name.to_owned(), Rc::clone(&trace));
        Ok(trace)
    }
}

/// Draws an image with gradients, edges and three different channels.
pub(super) fn image(width: u32, height: u32) -> RgbImage {
    RgbImage::from_fn(width, height, |x, y| {
        Rgb([(x * 7) as u8, (y * 5) as u8, ((x ^ y) + 30) as u8])
    })
}

/// Returns an edit that takes a fraction of a second.
pub(super) fn edit() -> Request {
    Request::edit(image(150, 110), "make it winter, with snow on the roofs")
        .max_area(AREA)
        .steps(STEPS)
        .seed(3)
}

/// Copies a part's folder, with its weights in another dtype.
fn narrow(from: &Path, to: &Path, kind: Kind) -> anyhow::Result<()> {
    kontext_core::create_folder(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let (path, out) = (entry.path(), to.join(entry.file_name()));
        if path.extension().is_none_or(|extension| extension != "safetensors") {
            std::fs::copy(path, out)?;
            continue;
        }
        let weights = Weights::open(&path)?;
        let tensors = weights.names().into_iter().map(|name| {
            let tensor = weights.raw(&name)?.f_to_kind(kind)?;
            Ok((name, tensor))
        });
        kontext_formats::save(out, &tensors.collect::<kontext::Result<Vec<_>>>()?, None)?;
    }
    Ok(())
}
