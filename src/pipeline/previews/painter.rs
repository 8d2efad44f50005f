//! The previews of one run: painted after a step, delivered when the device is done.

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kontext_core::images::{Rounding, from_levels, to_levels};
use kontext_core::{Device, Error, Kind, Result, Tensor};
use kontext_device::cuda;
use kontext_sampler::{Grid, Step, unpack};
use kontext_vae::{Autoencoder, LatentColours};

use crate::Event;
use crate::frozen::Frozen;
use crate::pipeline::computing::Computing;
use crate::pipeline::run::Observer;

/// Largest side of a preview, in pixels.
const LARGEST: i64 = 512;
/// Previews that are being copied from a device at once. A device that is later than that has no time for more.
const WAITING: usize = 4;

/// The painter of a run's previews.
pub(crate) struct Painter {
    brush: Brush,
    every: Duration,
    last: Option<Instant>,
    grid: Grid,
    waiting: VecDeque<Waiting>,
}

/// The way from latents to colours, on the run's device.
pub(super) enum Brush {
    /// A tiny autoencoder, and the dtype of its weights.
    Decoder(Arc<Frozen<Autoencoder>>, Kind),
    Map(LatentColours),
}

/// A preview on its way from a CUDA device to pinned memory.
struct Waiting {
    copied: cuda::Event,
    /// u8 [1, H, W, 3] in pinned memory.
    levels: Tensor,
    done: usize,
    total: usize,
}

impl Painter {
    /// Creates a painter for latents of this grid.
    pub(super) fn new(brush: Brush, every: Duration, grid: Grid) -> Self {
        Self {
            brush,
            every,
            last: None,
            grid,
            waiting: VecDeque::new(),
        }
    }

    /// Delivers the previews that have arrived, and paints the step's if one is due.
    pub(crate) fn step(
        &mut self,
        computing: &Computing,
        step: &Step<'_>,
        observe: Observer<'_>,
    ) -> Result<ControlFlow<()>> {
        while let Some(first) = self.waiting.front() {
            if !first.copied.has_passed()? {
                break;
            }
            if self.deliver_first(observe)?.is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        let due = self.last.is_none_or(|last| last.elapsed() >= self.every);
        if !due || self.waiting.len() >= WAITING {
            return Ok(ControlFlow::Continue(()));
        }
        self.last = Some(Instant::now());
        let levels = computing.image(|| self.paint(step))?;
        let Device::Cuda(index) = levels.device() else {
            return deliver(&levels, step.done, step.total, observe);
        };
        // A copy without waiting goes to pinned memory, which libtorch keeps until the copy has ended.
        let levels = levels.f_internal_to_copy((Kind::Uint8, Device::Cpu), true)?;
        self.waiting.push_back(Waiting {
            copied: cuda::Event::after_libtorch(index)?,
            levels,
            done: step.done,
            total: step.total,
        });
        Ok(ControlFlow::Continue(()))
    }

    /// Delivers the rest after the last step, whose end the run waits for in any case.
    pub(crate) fn finish(&mut self, observe: Observer<'_>) -> Result<ControlFlow<()>> {
        while let Some(first) = self.waiting.front() {
            first.copied.synchronize()?;
            if self.deliver_first(observe)?.is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    fn deliver_first(&mut self, observe: Observer<'_>) -> Result<ControlFlow<()>> {
        match self.waiting.pop_front() {
            Some(Waiting {
                levels, done, total, ..
            }) => deliver(&levels, done, total, observe),
            None => Ok(ControlFlow::Continue(())),
        }
    }

    /// Returns the levels u8 [1, H, W, 3] of the image that a step predicts, on its device.
    fn paint(&self, step: &Step<'_>) -> Result<Tensor> {
        let tokens = step.estimate()?.f_narrow(0, 0, 1)?;
        let latents = unpack(&tokens, self.grid)?;
        let image = match &self.brush {
            Brush::Map(map) => map.of(&reduced(&latents, LARGEST)?)?,
            Brush::Decoder(decoder, kind) => {
                let latents = reduced(&latents, LARGEST / decoder.downscale())?;
                decoder.decode(&latents.f_to_kind(*kind)?)?
            }
        };
        to_levels(&image, Rounding::Nearest)
    }
}

/// Returns latents [1, C, H, W] averaged to at most `most` on the longer side.
fn reduced(latents: &Tensor, most: i64) -> Result<Tensor> {
    let [_, _, height, width] = kontext_core::check::dims("latents", latents, "[B, C, H, W]")?;
    let longest = height.max(width);
    if longest <= most {
        return Ok(latents.shallow_clone());
    }
    let side = |side: i64| (side * most / longest).max(1);
    Ok(latents.f_adaptive_avg_pool2d([side(height), side(width)])?)
}

fn deliver(levels: &Tensor, done: usize, total: usize, observe: Observer<'_>) -> Result<ControlFlow<()>> {
    let image = from_levels(levels)?.into_iter().next();
    let image = &image.ok_or_else(|| Error::bug("a preview of no image"))?;
    Ok(observe(Event::Preview { done, total, image }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latents_larger_than_a_preview_are_averaged_in_their_ratio() {
        let latents = Tensor::arange(2 * 8 * 4, (Kind::Float, Device::Cpu)).reshape([1, 2, 8, 4]);
        assert!(reduced(&latents, 8).unwrap().equal(&latents));
        let half = reduced(&latents, 4).unwrap();
        assert_eq!(half.size(), [1, 2, 4, 2]);
        assert_eq!(half.double_value(&[0, 0, 0, 0]), (0.0 + 1.0 + 4.0 + 5.0) / 4.0);
        let thin = Tensor::zeros([1, 2, 2000, 2], (Kind::Float, Device::Cpu));
        assert_eq!(reduced(&thin, 512).unwrap().size(), [1, 2, 512, 1]);
    }
}
