//! The number of threads with which a run computes on a CPU.

use std::fmt;
use std::str::FromStr;

use kontext_core::{Error, Result};
use kontext_device::{openmp, turns};
use kontext_dit::DitConfig;

/// Operations of a block, such as a transformer's, that are worth a thread. Measured on two cores (docs/threads.md): with
/// 0.7e9 in a block two threads, which sleep while they wait for each other, are no faster than one; with 1.7e9 they are.
const WORK_OF_A_THREAD: u64 = 750_000_000;
/// Channels of an autoencoder at the full size of an image, of which a plan knows nothing: between those of small ones (16)
/// and of FLUX.1's (128).
const IMAGE_CHANNELS: u64 = 64;
/// Most threads of a run: more cores are in no machine yet.
const MOST: usize = 4096;

/// The number of threads with which a run computes on the CPU.
///
/// Runs of a process take turns, so that all of them together compute with as many threads as there are cores: a
/// model of one thread computes in as many runs at once, and others wait until it is their turn, at the end of the
/// step of another run. While a callback runs, the run has no turn. On a GPU there are no turns, and
/// [`Threads::Automatic`] leaves the number as it is.
///
/// The results may depend on the number in the last bits. [`Threads::Automatic`] does not look at what else the process
/// and the machine do, so that the same request gives the same bytes.
///
/// # Example
/// ```
/// use kontext::{Device, ModelSizes, Pipeline, Request, Threads};
/// let pipe = Pipeline::builder().device(Device::Cpu).threads(Threads::Fixed(2)).random(&ModelSizes::small(), 7)?;
/// let plan = pipe.plan(&Request::generate("a cat").size(32, 32))?;
/// assert_eq!(plan.threads.map(|threads| threads.steps), Some(2));
/// # Ok::<(), kontext::Error>(())
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Threads {
    /// One for each 0.75e9 operations of a block, so that the threads do not wait for each other most of the time. At most
    /// the cores that this process may use, and libtorch's number (`OMP_NUM_THREADS`, `tch::set_num_threads`).
    #[default]
    Automatic,
    /// This number, from 1 to 4096.
    Fixed(usize),
}

impl Threads {
    /// Checks the number.
    pub(crate) fn validate(self) -> Result<()> {
        match self {
            Self::Fixed(number) if !(1..=MOST).contains(&number) => {
                Err(Error::invalid("threads", format!("1 to {MOST}, or automatic"), number))
            }
            Self::Automatic | Self::Fixed(_) => Ok(()),
        }
    }
}

impl fmt::Display for Threads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Automatic => f.write_str("auto"),
            Self::Fixed(number) => write!(f, "{number}"),
        }
    }
}

/// Reads `auto` or a number.
impl FromStr for Threads {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        if text == "auto" {
            return Ok(Self::Automatic);
        }
        let invalid = || Error::invalid("threads", format!("auto, or a number from 1 to {MOST}"), text);
        let threads = Self::Fixed(text.parse().map_err(|_| invalid())?);
        threads.validate().map_err(|_| invalid())?;
        Ok(threads)
    }
}

/// The numbers of threads of a run's stages on this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct RunThreads {
    /// Threads that encode text.
    pub text: usize,
    /// Threads of a denoising step.
    pub steps: usize,
    /// Threads that encode and decode images.
    pub images: usize,
}

impl RunThreads {
    /// Returns the largest of the numbers.
    pub(crate) fn most(self) -> usize {
        self.text.max(self.steps).max(self.images)
    }

    fn same(threads: usize) -> Self {
        Self {
            text: threads,
            steps: threads,
            images: threads,
        }
    }
}

impl fmt::Display for RunThreads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { text, steps, images } = self;
        if text == steps && steps == images {
            return write!(f, "{steps}");
        }
        write!(f, "{text} (text), {steps} (steps), {images} (images)")
    }
}

/// Properties of a model that the numbers depend on.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Computation {
    pub(crate) threads: Threads,
    /// `false` for a GPU.
    pub(crate) on_cpu: bool,
    pub(crate) width: u64,
    pub(crate) mlp_width: u64,
    pub(crate) text_width: u64,
}

/// Sizes of a run that the numbers depend on.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Load {
    /// Tokens of all images of a step.
    pub(crate) tokens: u64,
    /// Tokens of one image of a step, which attend to each other.
    pub(crate) sequence: u64,
    pub(crate) text_tokens: u64,
    /// Pixels of the largest image.
    pub(crate) pixels: u64,
}

impl Computation {
    pub(crate) fn of(config: &DitConfig) -> Self {
        let size = |size: i64| size.unsigned_abs();
        Self {
            threads: Threads::Automatic,
            on_cpu: true,
            width: size(config.heads).saturating_mul(size(config.head_dim)),
            mlp_width: size(config.mlp_width),
            text_width: size(config.context_dim),
        }
    }

    /// Returns the numbers for a run on this machine, for the calling thread.
    pub(crate) fn threads(self, load: Load) -> Option<RunThreads> {
        match self.threads {
            Threads::Fixed(number) => Some(RunThreads::same(number)),
            Threads::Automatic if !self.on_cpu => None,
            Threads::Automatic => Some(self.automatic(load, turns::cores().min(openmp::threads()))),
        }
    }

    fn automatic(self, load: Load, most: usize) -> RunThreads {
        let number = |operations: u64| {
            let worth = usize::try_from(operations / WORK_OF_A_THREAD).unwrap_or(usize::MAX);
            worth.clamp(1, most.max(1))
        };
        let product = |factors: &[u64]| factors.iter().fold(1, |all: u64, factor| all.saturating_mul(*factor));
        // Multiplications and additions. A block: queries, keys, values, output; both sides of the MLP; attention.
        let projections = product(&[8, load.tokens, self.width, self.width]);
        let mlp = product(&[4, load.tokens, self.width, self.mlp_width]);
        let attention = product(&[4, load.tokens, load.sequence, self.width]);
        // T5 1.1: the same projections, and three matrices of 2.5 times the width.
        let text = product(&[23, load.text_tokens, self.text_width, self.text_width]);
        // Two 3x3 convolutions.
        let images = product(&[36, load.pixels, IMAGE_CHANNELS, IMAGE_CHANNELS]);
        RunThreads {
            text: number(text),
            steps: number(projections.saturating_add(mlp).saturating_add(attention)),
            images: number(images),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(tokens: u64, pixels: u64) -> Load {
        Load {
            tokens,
            sequence: tokens,
            text_tokens: 512,
            pixels,
        }
    }

    fn width(width: u64, text_width: u64) -> Computation {
        Computation {
            width,
            mlp_width: width.saturating_mul(4),
            text_width,
            ..Computation::of(&DitConfig::kontext_dev())
        }
    }

    #[test]
    fn a_small_model_computes_with_one_thread_and_a_large_one_with_all() {
        let small = width(192, 128).automatic(load(48, 64 * 64), 64);
        assert_eq!(small, RunThreads::same(1));
        let full = Computation::of(&DitConfig::kontext_dev());
        for cores in [1, 2, 64] {
            assert_eq!(full.automatic(load(8704, 1 << 20), cores), RunThreads::same(cores));
        }
        // No core at all is one.
        assert_eq!(full.automatic(load(8704, 1 << 20), 0), RunThreads::same(1));
    }

    #[test]
    fn the_number_grows_with_the_work_of_each_stage() {
        // 24 * 256 * 512^2 + 4 * 256^2 * 512 = 1.745e9 operations in a block.
        assert_eq!(width(512, 128).automatic(load(256, 1), 64).steps, 2);
        assert_eq!(width(384, 128).automatic(load(176, 1), 64).steps, 1);
        // 23 * 512 * 1024^2 = 12.3e9.
        assert_eq!(width(128, 1024).automatic(load(1, 1), 64).text, 16);
        // 36 * 128^2 * 64^2 = 2.4e9.
        assert_eq!(width(128, 128).automatic(load(1, 128 * 128), 64).images, 3);
        assert_eq!(
            width(u64::MAX, u64::MAX).automatic(load(u64::MAX, u64::MAX), 64),
            RunThreads::same(64)
        );
    }

    #[test]
    fn a_fixed_number_is_that_of_each_stage_and_a_gpu_has_none() {
        let mut model = width(192, 128);
        model.threads = Threads::Fixed(3);
        assert_eq!(model.threads(load(48, 1)), Some(RunThreads::same(3)));
        model.on_cpu = false;
        assert_eq!(model.threads(load(48, 1)), Some(RunThreads::same(3)));
        model.threads = Threads::Automatic;
        assert_eq!(model.threads(load(48, 1)), None);
    }

    #[test]
    fn numbers_are_read_as_they_are_written() {
        for threads in [Threads::Automatic, Threads::Fixed(1), Threads::Fixed(MOST)] {
            assert_eq!(threads.to_string().parse::<Threads>().unwrap(), threads);
        }
        for text in ["", "0", "-1", "4097", "two", "Auto"] {
            let error = text.parse::<Threads>().unwrap_err().to_string();
            assert!(error.contains("auto, or a number from 1 to 4096"), "{error}");
        }
        let text = RunThreads {
            text: 2,
            ..RunThreads::same(1)
        };
        assert_eq!(text.to_string(), "2 (text), 1 (steps), 1 (images)");
        assert_eq!(RunThreads::same(1).to_string(), "1");
    }
}
