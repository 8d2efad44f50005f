//! The ground of all checks: a small random model in a folder, requests, pictures.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use anyhow::Context;
use kontext::image::{Rgb, RgbImage};
use kontext::{Builder, Device, Kind, Layout, Pipeline, Request, Weights, random_model};
use tempfile::TempDir;

use super::Options;
use super::distance::Trace;

/// Seed of the small random model.
const SEED: u64 = 7;
/// T5's tokens: enough for its position buckets to differ, and no more.
const TEXT: usize = 64;
/// Pixels of a result: large enough that each block of attention sees some hundred tokens.
const AREA: u64 = 192 * 192;
/// Steps of a run: an error of one step reaches the next.
const STEPS: usize = 3;

/// The kinds that are checked, by the names that cases give them.
pub(super) const KINDS: [(&str, Kind); 2] = [("f32", Kind::Float), ("bf16", Kind::BFloat16)];

/// The small random model, the inputs, and results of the CPU.
pub(super) struct World {
    pub(super) device: Device,
    /// The small model that edits emoji.
    pub(super) shipped: PathBuf,
    pub(super) inputs: PathBuf,
    /// The folder for pictures.
    pub(super) out: Option<PathBuf>,
    folder: TempDir,
    /// Runs on the CPU that several checks compare with.
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
            folder,
            expected: RefCell::default(),
        })
    }

    /// The folder of the random model.
    pub(super) fn model(&self) -> PathBuf {
        self.folder.path().join("model")
    }

    /// The folder of the same model with its weights in this kind.
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

    /// Options of a pipeline of the random model.
    pub(super) fn builder(device: Device, kind: Kind) -> Builder {
        Pipeline::builder().device(device).dtype(kind).max_sequence_length(TEXT)
    }

    /// The random model as it is stored, on the device that is checked.
    pub(super) fn pipeline(&self, kind: Kind) -> anyhow::Result<Pipeline> {
        Ok(Self::builder(self.device, kind).load(self.model())?)
    }

    /// Returns what `make` makes, once for each name.
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

/// A picture with gradients, edges and three unlike channels.
pub(super) fn picture(width: u32, height: u32) -> RgbImage {
    RgbImage::from_fn(width, height, |x, y| {
        Rgb([(x * 7) as u8, (y * 5) as u8, ((x ^ y) + 30) as u8])
    })
}

/// An edit that takes a fraction of a second.
pub(super) fn edit() -> Request {
    Request::edit(&picture(150, 110), "make it winter, with snow on the roofs")
        .max_area(AREA)
        .steps(STEPS)
        .seed(3)
}

/// Copies a part's folder, its weights in another kind.
fn narrow(from: &Path, to: &Path, kind: Kind) -> anyhow::Result<()> {
    std::fs::create_dir_all(to)?;
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
        kontext_core::formats::save(out, &tensors.collect::<kontext::Result<Vec<_>>>()?, None)?;
    }
    Ok(())
}
