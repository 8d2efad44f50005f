//! Memory that a run's device lacks: told before the run, or when libtorch finds it.

use kontext_core::{Error, Result, memory};

use super::Pipeline;
use crate::Plan;

impl Pipeline {
    /// Refuses a run that takes more memory than its device has free, where that can be told.
    pub(super) fn check_memory(&self, plan: &Plan) -> Result<()> {
        let Some(files) = &self.files else { return Ok(()) };
        let check = || match memory::free(self.device) {
            Ok(free) => files.footprint.check(plan, files.arrangement, free),
            Err(_) => Ok(()),
        };
        check().or_else(|_| {
            // What earlier runs have freed may still be kept for later ones.
            memory::give_back_on(self.device);
            check()
        })
    }

    /// Puts libtorch's shortage of memory into words that say what to do.
    pub(super) fn name_shortage(&self, error: Error, plan: &Plan, stage: &'static str) -> Error {
        let Some(files) = self.files.as_ref().filter(|_| error.is_out_of_memory()) else {
            return error;
        };
        memory::give_back_on(self.device);
        let Ok(free) = memory::free(self.device) else {
            return error;
        };
        files.footprint.shortage(error, plan, files.arrangement, stage, free)
    }
}
