//! Images that a run makes on the host: resized and joined references, and results.
//!
//! The images of a request are the caller's, and not counted.

use kontext_core::images::resize_bytes;
use kontext_sampler::{References, Size};

use super::Footprint;
use crate::Plan;

impl Footprint {
    /// Returns the bytes held while a reference is encoded, and those of resizing it next to them.
    pub(super) fn reference_images(&self, plan: &Plan) -> [u64; 2] {
        let sides = |size: Size| [size.width, size.height];
        let all = plan
            .references
            .iter()
            .map(|reference| resize_bytes(sides(reference.input), sides(reference.fitted)));
        let [held, work] = all.fold([0, 0], |[held, work], [result, rest]| {
            [result.max(held), rest.max(work)]
        });
        let joined = match (plan.reference_mode, plan.references.first()) {
            // Next to the joined image there is one that is copied into it.
            (References::Stitch, Some(whole)) => bytes(whole.input).saturating_mul(2),
            _ => 0,
        };
        self.on_host([held.saturating_add(joined), work])
    }

    /// Returns the bytes of the results, of which the first is there twice in an [`Output`](crate::Output), and those
    /// of resizing one next to them.
    pub(super) fn results(&self, plan: &Plan) -> [u64; 2] {
        let (target, output) = (plan.target.size(), plan.decoded());
        let images = bytes(plan.output).saturating_mul(plan.batch as u64 + 1);
        // With a mask, the padded source, its part, a result of that part, and the shares.
        let masked = plan.mask.map_or(0, |mask| {
            let parts = bytes(mask.region.size).saturating_mul(2);
            bytes(mask.canvas)
                .saturating_add(mask.canvas.area())
                .saturating_add(parts)
        });
        let images = images.saturating_add(masked);
        if target == output {
            return self.on_host([images, 0]);
        }
        let [_, rest] = resize_bytes([target.width, target.height], [output.width, output.height]);
        self.on_host([images.saturating_add(bytes(target)), rest])
    }

    /// Returns nothing for a plan of a device's memory.
    fn on_host(&self, bytes: [u64; 2]) -> [u64; 2] {
        if self.machine.device.is_cuda() { [0, 0] } else { bytes }
    }
}

/// Returns the bytes of an image.
fn bytes(size: Size) -> u64 {
    size.area().saturating_mul(3)
}
