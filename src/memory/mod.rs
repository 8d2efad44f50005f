//! Memory estimates for runs, from headers only.

mod footprint;
mod pictures;
mod remedy;
#[cfg(test)]
mod tests;
mod work;

use std::fmt;

use kontext_core::{Device, Kind, Stage};

pub(crate) use self::footprint::Footprint;
use crate::Placement;

/// Divisor of the share of free memory left to other programs: 1 / 20.
const SPARE: u64 = 20;

/// Peak memory of a run, stage by stage.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct MemoryPlan {
    /// The device whose memory is planned: the model's.
    pub device: Device,
    /// Placement of the parts.
    pub placement: Placement,
    /// The stages, in order: [`Stage::Text`], [`Stage::References`] if there are any, [`Stage::Denoise`],
    /// [`Stage::Decode`].
    pub stages: Vec<StageMemory>,
    /// Bytes of files read in place: pages in the system's cache, reclaimed when memory is short.
    pub file_pages: u64,
}

/// Memory of one stage of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct StageMemory {
    /// The stage.
    pub stage: Stage,
    /// Bytes of weights held during the stage.
    pub weights: u64,
    /// Peak bytes of activations and, on the host, of the images that the run makes: resized references and
    /// results, without the request's own images.
    pub work: u64,
}

/// A model's device, and its dtypes in memory.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Machine {
    pub(crate) device: Device,
    /// The dtype that text encoders are built for.
    pub(crate) built: Kind,
    /// Upper bound for the transformer's plain weights.
    pub(crate) stored: Kind,
}

/// The parts whose weights are in memory between runs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct LoadedParts {
    pub(crate) text: bool,
    pub(crate) dit: bool,
    pub(crate) vae: bool,
}

impl LoadedParts {
    /// All parts, as after loading.
    pub(crate) const ALL: Self = Self {
        text: true,
        dit: true,
        vae: true,
    };
}

impl StageMemory {
    /// Returns the bytes of weights and activations.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.weights.saturating_add(self.work)
    }
}

impl MemoryPlan {
    /// Returns the stage with the highest use and its bytes, not counting the program itself and file pages.
    #[must_use]
    pub fn peak(&self) -> (Stage, u64) {
        let most = self.stages.iter().max_by_key(|stage| stage.bytes());
        most.map_or((Stage::default(), 0), |stage| (stage.stage, stage.bytes()))
    }

    /// Returns `true` if the peak fits into `available` bytes, less a small reserve.
    #[must_use]
    pub fn fits(&self, available: u64) -> bool {
        self.peak().1 <= available - available / SPARE
    }
}

impl fmt::Display for MemoryPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (stage, bytes) = self.peak();
        let (placement, peak, pages) = (self.placement, Bytes(bytes), Bytes(self.file_pages));
        let whose = match self.device {
            Device::Cuda(index) => format!(" of cuda:{index}'s memory"),
            Device::Cpu | Device::Mps | Device::Vulkan => String::new(),
        };
        write!(
            f,
            "{placement}: {peak}{whose} while {stage}, and up to {pages} of files in the system's cache"
        )?;
        for StageMemory { stage, weights, work } in &self.stages {
            write!(
                f,
                "\n  {stage}: {} weights + {} activations",
                Bytes(*weights),
                Bytes(*work)
            )?;
        }
        Ok(())
    }
}

/// Human-readable bytes.
struct Bytes(u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 < 1_000_000_000 {
            write!(f, "{} MB", self.0.div_ceil(1_000_000))
        } else {
            write!(f, "{:.2} GB", self.0 as f64 / 1e9)
        }
    }
}
