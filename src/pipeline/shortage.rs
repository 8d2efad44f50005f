//! Insufficient device memory: detected before a run, or reported by libtorch.

use kontext_core::{Error, Result, Stage};
use kontext_device::memory;

use super::Pipeline;
use crate::Plan;

impl Pipeline {
    /// Refuses a run that takes more memory than its device has free, if the device reports it, or more than
    /// the budget leaves.
    pub(super) fn check_memory(&self, plan: &Plan) -> Result<()> {
        let Some(files) = &self.files else { return Ok(()) };
        let loaded = self.loaded_parts();
        let check = || {
            // What earlier runs encoded counts like weights.
            let left_of = |budget: u64| {
                let left = files.footprint.left_of(budget, files.arrangement, loaded);
                left.saturating_sub(self.encodings.held())
            };
            // Not every device reports its free memory.
            let free = memory::free(self.device).ok();
            match free.into_iter().chain(files.budget.map(left_of)).min() {
                Some(available) => files.footprint.check(plan, files.arrangement, loaded, available),
                None => Ok(()),
            }
        };
        check()
            .or_else(|_| {
                // Memory freed by earlier runs may still be in the allocator's cache.
                memory::give_back_on(self.device);
                check()
            })
            .or_else(|_| {
                // What they encoded is encoded again when it is needed.
                self.encodings.clear();
                memory::give_back_on(self.device);
                check()
            })
    }

    /// Turns a libtorch OOM into an error with a remedy.
    pub(super) fn name_shortage(&self, error: Error, plan: &Plan, stage: Stage) -> Error {
        let Some(files) = self.files.as_ref().filter(|_| error.is_out_of_memory()) else {
            return error;
        };
        memory::give_back_on(self.device);
        let Ok(free) = memory::free(self.device) else {
            return error;
        };
        files
            .footprint
            .shortage(error, plan, files.arrangement, self.loaded_parts(), stage, free)
    }
}
