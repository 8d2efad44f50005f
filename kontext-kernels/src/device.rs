//! A CUDA device as a target of launches.

use std::path::Path;
use std::sync::Arc;

use kontext_core::{Device, Error, Result};
use kontext_device::cuda::{Code, Driver, Function};
use kontext_device::device;

use crate::cache::Entry;
use crate::nvrtc::{Nvrtc, failed};
use crate::{Call, Kernel, KernelShape, Kernels, Launch, source};

/// Lowest compute capability: conversion to bf16.
const LOWEST: (i32, i32) = (8, 0);
/// Lowest compute capability of conversion to e4m3.
const FP8: (i32, i32) = (8, 9);

impl Kernels {
    /// Compiles the kernels for a CUDA device: about half a second of one CPU, on any thread. `cache` is a folder for
    /// compiled code, made if it does not exist, in which the newest files of all shapes and devices are kept.
    ///
    /// # Errors
    /// [`Error::Device`] if the device is not a CUDA device or older than compute capability 8.0, if libtorch's CUDA
    /// half or NVRTC is missing, or if the compiler or the runtime refuses the code. Then libtorch's operations remain.
    pub fn compile(shape: &KernelShape, device: Device, cache: Option<&Path>) -> Result<Self> {
        let Device::Cuda(index) = device else {
            return Err(Error::invalid("device", "a CUDA device", format!("{device:?}")));
        };
        device::available(device)?;
        let capability = capability(index)?;
        let code = code(&Nvrtc::find()?, shape, capability, cache)?;
        let target = Target::load(*shape, index, capability, &code)?;
        Ok(Self::launched_by(Arc::new(target), shape))
    }
}

/// Returns the compute capability of a device.
fn capability(index: usize) -> Result<(i32, i32)> {
    let missing = || failed("NVIDIA's driver does not list the device".to_owned());
    let driver = Driver::find()?.ok_or_else(missing)?;
    let capability = driver.devices.get(index).ok_or_else(missing)?.capability;
    if capability < LOWEST {
        let (major, minor) = capability;
        return Err(failed(format!(
            "the kernels need compute capability 8.0 or newer, and this GPU has {major}.{minor}; take libtorch's \
             operations"
        )));
    }
    Ok(capability)
}

/// Returns the options by which the kernels are compiled for a shape and a compute capability, such as (9, 0).
///
/// # Example
/// ```
/// let shape = kontext_kernels::KernelShape::new(3072, 128, 12_288)?;
/// assert_eq!(kontext_kernels::options(&shape, (9, 0))[0], "-arch=sm_90");
/// # Ok::<(), kontext_core::Error>(())
/// ```
#[must_use]
pub fn options(shape: &KernelShape, (major, minor): (i32, i32)) -> Vec<String> {
    let mut options = vec![format!("-arch=sm_{major}{minor}"), "--std=c++17".to_owned()];
    options.extend(shape.defines());
    options
}

/// Returns the code from the cache, or compiles it.
fn code(nvrtc: &Nvrtc, shape: &KernelShape, capability: (i32, i32), cache: Option<&Path>) -> Result<Vec<u8>> {
    let options = options(shape, capability);
    let version = nvrtc.version()?;
    let entry = cache.map(|folder| Entry::of(folder, source(), &options, version));
    if let Some(code) = entry.as_ref().and_then(Entry::read) {
        return Ok(code);
    }
    let code = nvrtc.compile(source(), &options)?;
    if let Some(entry) = entry {
        entry.write(&code);
    }
    Ok(code)
}

/// A device with the loaded kernels of one shape.
#[derive(Debug)]
struct Target {
    shape: KernelShape,
    index: usize,
    functions: [Option<Function>; Kernel::ALL.len()],
    has_fp8: bool,
}

impl Target {
    #[allow(unsafe_code)]
    fn load(shape: KernelShape, index: usize, capability: (i32, i32), code: &[u8]) -> Result<Self> {
        let has_fp8 = capability >= FP8;
        // SAFETY: the code is NVRTC's, fresh or of a file whose digest is right.
        let code = unsafe { Code::load(index, code)? };
        let mut functions = [const { None }; Kernel::ALL.len()];
        for (function, kernel) in functions.iter_mut().zip(Kernel::ALL) {
            if has_fp8 || !kernel.needs_fp8() {
                *function = Some(code.function(kernel.name())?);
            }
        }
        Ok(Self {
            shape,
            index,
            functions,
            has_fp8,
        })
    }
}

impl Launch for Target {
    fn device(&self) -> Device {
        Device::Cuda(self.index)
    }

    fn has_fp8(&self) -> bool {
        self.has_fp8
    }

    #[allow(unsafe_code)]
    fn launch(&self, mut call: Call<'_>) -> Result<()> {
        let kernel = call.kernel();
        if *call.shape() != self.shape {
            return Err(Error::bug("a launch of kernels that were compiled for another shape"));
        }
        let function = self
            .functions
            .iter()
            .zip(Kernel::ALL)
            .find_map(|(function, of)| function.as_ref().filter(|_| of == kernel))
            .ok_or_else(|| Error::bug(format!("a launch of {kernel}, which this device lacks")))?;
        let (grid, block) = (call.grid(), call.block());
        // SAFETY: `Kernels` makes the arguments of this kernel and has checked the tensors. libtorch's allocator gives
        // freed memory only to later work of the same stream.
        unsafe { function.launch(grid, block, call.arguments()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_device_is_refused() {
        let shape = KernelShape::new(3072, 128, 12_288).unwrap();
        let error = Kernels::compile(&shape, Device::Cpu, None).unwrap_err();
        assert!(error.to_string().contains("a CUDA device"), "{error}");
    }

    #[test]
    fn options_name_architecture_and_sizes() {
        let shape = KernelShape::new(192, 32, 768).unwrap();
        let expected = ["-arch=sm_120", "--std=c++17", "-DWIDTH=192", "-DHEAD=32", "-DMLP=768"];
        assert_eq!(options(&shape, (12, 0)), expected);
    }
}
