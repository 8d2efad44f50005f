//! Correctness on a device: comparison with the CPU's results and with stored ones.
//!
//! TF32 is switched off in all cases except the one that measures it.

mod attention;
mod cached;
mod damage;
mod distance;
mod forms;
mod fused;
mod kernels;
mod lora;
mod memory;
mod noise;
mod parts;
mod placement;
mod program;
mod runs;
mod shipped;
mod threads;
mod training;
mod world;

use std::path::PathBuf;
use std::process::ExitCode;

use kontext::Device;

use self::world::World;
use crate::{Common, device};

/// Options of `check`.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    #[command(flatten)]
    pub(crate) common: Common,
    /// Folder of the small model that edits emoji
    #[arg(long, value_name = "DIR", default_value = "models/kontext-emoji")]
    model: PathBuf,
    /// Folder of the kit's inputs: forms.safetensors, emoji-source.png
    #[arg(long, value_name = "DIR")]
    inputs: PathBuf,
}

pub(crate) fn run(options: &Options, on: Device) -> anyhow::Result<ExitCode> {
    let defaults = device::tf32()?;
    device::set_tf32(false, false)?;
    let world = World::new(options, on)?;
    // The cases on which the others build come first.
    let cases = [
        program::cases(on, defaults),
        kernels::cases(&world),
        fused::cases(&world),
        attention::cases(&world),
        noise::cases(&world),
        parts::cases(&world),
        runs::cases(&world),
        cached::cases(&world),
        shipped::cases(&world),
        forms::cases(&world),
        placement::cases(&world),
        lora::cases(&world),
        training::cases(&world),
        damage::cases(&world),
        memory::cases(&world),
        threads::cases(&world),
    ];
    options.common.selection.run(cases.into_iter().flatten().collect(), on)
}
