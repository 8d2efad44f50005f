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

#[cfg(test)]
mod tests {
    use std::thread;

    use crate::{Device, ModelSizes, Pipeline, Request, Threads};

    use super::*;

    fn random(threads: Threads) -> Pipeline {
        let builder = Pipeline::builder().device(Device::Cpu).threads(threads);
        builder.random(&ModelSizes::small(), 7).unwrap()
    }

    #[test]
    fn each_stage_computes_with_its_threads_in_its_turn_and_the_callers_number_returns() {
        let request = Request::generate("a cat").size(32, 32);
        let pipe = random(Threads::Automatic);
        let mut plan = pipe.plan(&request).unwrap();
        plan.threads = Some(RunThreads {
            text: 2,
            steps: 3,
            images: 4,
        });
        let _team = Team::of(5);
        let computing = pipe.computing_of(&plan).unwrap();
        let share = computing.share.as_ref().unwrap();
        // Other tests of this process may have turns, but this one ends them.
        assert_eq!(computing.text(openmp::threads), 2);
        assert_eq!(computing.step(openmp::threads), 3);
        assert_eq!(computing.image(openmp::threads), 4);
        assert_eq!(openmp::threads(), 5);
        assert!(computing.step(|| Turns::of_this_process().free() < kontext_device::turns::cores()));
        drop(share.turn(usize::MAX));
        // A stretch that panics gives both back.
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| computing.step(|| panic!("a test"))));
        assert!(panicked.is_err());
        assert_eq!(openmp::threads(), 5);
        drop(share.turn(usize::MAX));
    }

    #[test]
    fn runs_of_any_number_of_threads_next_to_each_other_give_the_bytes_of_one() {
        let request = Request::generate("a cat").size(64, 48).steps(2).seed(3);
        for threads in [
            Threads::Automatic,
            Threads::Fixed(1),
            Threads::Fixed(2),
            Threads::Fixed(5),
        ] {
            let pipe = random(threads);
            let own = pipe.run(&request).unwrap();
            thread::scope(|scope| {
                for _ in 0..4 {
                    scope.spawn(|| {
                        let other = pipe.run(&request).unwrap();
                        assert_eq!((&other.image, &other.latents), (&own.image, &own.latents), "{threads}");
                    });
                }
            });
        }
    }

    #[test]
    fn a_callback_may_run_another_request() {
        use std::ops::ControlFlow::Continue;
        let pipe = random(Threads::Fixed(64));
        let request = Request::generate("a cat").size(32, 32).steps(1).seed(3);
        let mut inner = 0;
        let count = |_: crate::Event<'_>| {
            pipe.run(&request).unwrap();
            inner += 1;
            Continue(())
        };
        pipe.run_with(&request, count).unwrap();
        assert!(inner >= 4, "{inner}");
    }

    #[test]
    fn a_number_out_of_range_is_refused_with_the_range() {
        let builder = Pipeline::builder().device(Device::Cpu).threads(Threads::Fixed(0));
        let error = builder.random(&ModelSizes::small(), 7).unwrap_err().to_string();
        assert!(error.contains("threads") && error.contains("1 to 4096"), "{error}");
    }
}
