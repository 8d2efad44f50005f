//! How much memory a run takes, told from headers alone.

mod footprint;
mod part;
#[cfg(test)]
mod tests;
mod work;

use std::fmt;

use kontext_core::{Device, Kind};

pub(crate) use self::footprint::Footprint;
use crate::Placement;

/// One part in so many of the free memory is left to other programs.
const SPARE: u64 = 20;

/// The stages of a run, as gerunds.
pub(crate) const TEXT: &str = "encoding the prompt";
pub(crate) const REFERENCES: &str = "encoding the reference pictures";
pub(crate) const DENOISING: &str = "denoising";
pub(crate) const DECODING: &str = "decoding the picture";

/// Peak memory of a run, stage by stage.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct MemoryPlan {
    /// Whose memory it is: that of the device that the model is on.
    pub device: Device,
    /// When the parts are in memory.
    pub placement: Placement,
    /// The stages in their order.
    pub stages: Vec<StageMemory>,
    /// Bytes of files that are read in place: the system's cache, which it gives up when memory is short.
    pub file_pages: u64,
}

/// What one stage of a run takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct StageMemory {
    /// What happens, as a gerund.
    pub stage: &'static str,
    /// Bytes of weights that are in memory during the stage.
    pub weights: u64,
    /// Bytes of activations at its peak.
    pub work: u64,
}

/// Where a model is, and the kinds that it is held and computed in.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Machine {
    pub(crate) device: Device,
    /// Plain weights of the transformer are at most as wide.
    pub(crate) dtype: Kind,
    pub(crate) compute: Kind,
}

impl StageMemory {
    /// Weights and work.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.weights + self.work
    }
}

impl MemoryPlan {
    /// The stage that takes the most, and its bytes, without the program itself and without pages of files.
    #[must_use]
    pub fn peak(&self) -> (&'static str, u64) {
        let most = self.stages.iter().max_by_key(|stage| stage.bytes());
        most.map_or(("running", 0), |stage| (stage.stage, stage.bytes()))
    }

    /// Whether the peak fits this much memory, with a little left for all else.
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

/// Bytes for people.
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
