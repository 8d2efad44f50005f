//! kontext's own kernels: compiled for a CUDA device, run by the emulator of their tests on a CPU.

use std::sync::Arc;

use kontext::{Device, DitConfig};
use kontext_emulator::Emulator;
use kontext_kernels::{KernelShape, Kernels};

/// Returns the kernels of a shape.
pub(crate) fn kernels(shape: &KernelShape, on: Device) -> anyhow::Result<Kernels> {
    Ok(match on {
        Device::Cuda(_) => Kernels::compile(shape, on, None)?,
        _ => Kernels::launched_by(Arc::new(Emulator::default()), shape),
    })
}

/// Returns the shape of a transformer's kernels.
pub(crate) fn shape_of(config: &DitConfig) -> anyhow::Result<KernelShape> {
    Ok(KernelShape::new(config.width(), config.head_dim, config.mlp_width)?)
}
