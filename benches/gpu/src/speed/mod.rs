//! Timings and memory measurements: of a model of the published size on a GPU, of a small one on a CPU.

mod attention;
mod big_file;
mod parts;
mod placed;
mod quantised;
mod shared;
mod timing;
mod training;
mod whole;

use std::process::ExitCode;
use std::rc::Rc;

use clap::ValueEnum;
use kontext::{Device, ModelSizes};

use self::shared::{Scale, Shared};
use crate::Common;

/// Options of `speed`.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    #[command(flatten)]
    pub(crate) common: Common,
    /// Sizes of the model and of the images. Default: published on CUDA, small on a CPU
    #[arg(long, value_enum)]
    size: Option<SizeArg>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum SizeArg {
    Published,
    Small,
}

pub(crate) fn run(options: &Options, on: Device) -> anyhow::Result<ExitCode> {
    let size = options.size.unwrap_or(if on.is_cuda() {
        SizeArg::Published
    } else {
        SizeArg::Small
    });
    let scale = match size {
        SizeArg::Published => Scale {
            sizes: ModelSizes::published(),
            divisor: 1,
            steps: 28,
        },
        SizeArg::Small => Scale {
            sizes: ModelSizes::small(),
            divisor: 8,
            steps: 4,
        },
    };
    let files = Rc::new(big_file::Files::new(on, scale.clone()));
    let shared = Rc::new(Shared::new(on, scale));
    let fa3 = options.common.fa3.as_deref();
    let mut cases = parts::cases(&shared);
    // Before the whole run takes the parts; their memory is then free for the following cases.
    cases.extend(attention::steps(&shared, fa3));
    cases.extend(whole::cases(&shared));
    cases.extend(placed::cases(&files));
    cases.extend(quantised::cases(&shared));
    cases.extend(attention::cases(&shared, fa3));
    cases.extend(training::cases(&shared));
    // Last, as tracing may slow down all that follows.
    cases.extend(parts::traced(&shared));
    // Each case holds its own references, and the last one frees the data.
    drop((shared, files));
    options.common.selection.run(cases, on)
}
