//! The computing stretches of a run: in its turn, with its number of threads.

use kontext_core::{Device, Result};
use kontext_device::openmp::{self, Team};
use kontext_device::turns::{Share, Turns};

use super::Pipeline;
use crate::{Plan, RunThreads};

/// A run's numbers of threads, and its turns on the CPU.
///
/// No stretch may wait for another run, so no part is leased and no callback called in one.
#[derive(Debug)]
pub(super) struct Computing {
    threads: Option<RunThreads>,
    /// `None` on a GPU.
    share: Option<Share<'static>>,
}

impl Pipeline {
    /// Prepares the computing stretches of a run.
    ///
    /// # Errors
    /// [`Error::Thread`](crate::Error::Thread) if the system refuses a thread.
    pub(super) fn computing_of(&self, plan: &Plan) -> Result<Computing> {
        let threads = plan.threads.map_or_else(openmp::threads, RunThreads::most);
        openmp::check_team(threads)?;
        let on_cpu = self.device == Device::Cpu;
        if on_cpu && threads > 1 {
            // Otherwise the threads spin, as long as there are no more than cores.
            openmp::wait_passively();
        }
        Ok(Computing {
            threads: plan.threads,
            share: on_cpu.then(|| Share::new(Turns::of_this_process())),
        })
    }
}

impl Computing {
    /// Encodes text.
    pub(super) fn text<T>(&self, work: impl FnOnce() -> T) -> T {
        self.stretch(|threads| threads.text, work)
    }

    /// Computes a step, or what is prepared for all steps.
    pub(super) fn step<T>(&self, work: impl FnOnce() -> T) -> T {
        self.stretch(|threads| threads.steps, work)
    }

    /// Encodes or decodes an image.
    pub(super) fn image<T>(&self, work: impl FnOnce() -> T) -> T {
        self.stretch(|threads| threads.images, work)
    }

    fn stretch<T>(&self, of: impl FnOnce(RunThreads) -> usize, work: impl FnOnce() -> T) -> T {
        let threads = self.threads.map(of);
        let turn = self
            .share
            .as_ref()
            .zip(threads)
            .map(|(share, threads)| share.turn(threads));
        let team = threads.map(Team::of);
        let done = work();
        drop((team, turn));
        done
    }
}
