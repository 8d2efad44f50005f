//! Kernels of a pipeline's transformer and autoencoder, compiled while their weights load.

use std::path::PathBuf;
use std::sync::Mutex;
use std::thread::{self, JoinHandle};

use kontext_core::{Device, Error, Kind, Result, lock};
use kontext_dit::{Arithmetic, Dit, DitConfig};
use kontext_kernels::{KernelShape, Kernels};
use kontext_sampler::Conformance;
use kontext_vae::Autoencoder;

/// The kernels of a device and a transformer, on their way or there. An autoencoder uses the same: its channels
/// are arguments of the launches.
#[derive(Debug, Default)]
pub(crate) struct KernelSource(Mutex<State>);

#[derive(Debug, Default)]
enum State {
    /// Runs compute without kernels: on a CPU, in f32, or because the user wants it.
    #[default]
    Unused,
    Compiling(JoinHandle<Result<Kernels>>),
    There(Kernels),
    /// The reason why there are none.
    Missing(String),
}

/// Options of the kernels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct KernelOptions {
    pub(crate) wanted: bool,
    pub(crate) cache: Option<PathBuf>,
}

impl Default for KernelOptions {
    fn default() -> Self {
        Self {
            wanted: true,
            cache: None,
        }
    }
}

impl KernelSource {
    /// Begins to compile on a thread, if runs in `compute` on this device use kernels.
    pub(crate) fn begin(options: &KernelOptions, config: &DitConfig, device: Device, compute: Kind) -> Self {
        if !options.wanted || !device.is_cuda() || compute != Kind::BFloat16 {
            return Self::default();
        }
        let begin = || -> Result<State> {
            let shape = KernelShape::new(config.width(), config.head_dim, config.mlp_width)?;
            let cache = options.cache.clone();
            let compile = move || Kernels::compile(&shape, device, cache.as_deref());
            let thread = thread::Builder::new().name("kernels".to_owned()).spawn(compile);
            Ok(State::Compiling(thread.map_err(|error| {
                Error::bug(format!("a thread that compiles kernels: {error}"))
            })?))
        };
        let state = begin().unwrap_or_else(|error| State::Missing(error.to_string()));
        Self(Mutex::new(state))
    }

    /// Gives a transformer its kernels; waits for the compiler.
    pub(crate) fn equip(&self, dit: &mut Dit) {
        if let State::There(kernels) = &*self.finished() {
            dit.set_kernels(Some(kernels.clone()));
        }
    }

    /// Gives an autoencoder the kernels; waits for the compiler.
    pub(crate) fn equip_autoencoder(&self, vae: &mut Autoencoder) {
        if let State::There(kernels) = &*self.finished() {
            vae.set_kernels(Some(kernels.clone()));
        }
    }

    /// Returns the reason why there are no kernels, although runs would use them.
    pub(crate) fn missing(&self) -> Option<String> {
        match &*self.finished() {
            State::Missing(reason) => Some(reason.clone()),
            _ => None,
        }
    }

    fn finished(&self) -> impl std::ops::Deref<Target = State> {
        let mut state = lock(&self.0);
        if matches!(&*state, State::Compiling(_))
            && let State::Compiling(thread) = std::mem::take(&mut *state)
        {
            *state = match thread.join() {
                Ok(Ok(kernels)) => State::There(kernels),
                Ok(Err(error)) => State::Missing(error.to_string()),
                Err(_) => State::Missing("the thread that compiles them panicked".to_owned()),
            };
        }
        state
    }
}

impl Drop for KernelSource {
    /// Waits for the compiler, so that it does not run on while the process ends.
    fn drop(&mut self) {
        drop(self.finished());
    }
}

/// Returns the roundings of a run that follows these conventions.
pub(crate) fn arithmetic(conformance: Conformance) -> Arithmetic {
    match conformance {
        Conformance::Native => Arithmetic::Fewest,
        Conformance::Diffusers => Arithmetic::Diffusers,
        Conformance::Bfl => Arithmetic::Bfl,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(target_os = "linux")] // The emulator's.
    #[test]
    fn a_loaded_autoencoder_has_the_kernels() {
        use std::sync::Arc;

        use kontext_kernels::Counter;

        use crate::part_files::VaeFiles;

        let shape = KernelShape::new(64, 32, 256).unwrap();
        let counter = Arc::new(Counter::new(Arc::new(kontext_emulator::Emulator::default())));
        let kernels = Kernels::launched_by(counter.clone(), &shape);
        let files = VaeFiles {
            path: concat!(env!("CARGO_MANIFEST_DIR"), "/models/kontext-emoji/vae").into(),
            device: Device::Cpu,
            kernels: Arc::new(KernelSource(Mutex::new(State::There(kernels)))),
        };
        let latents = kontext_core::Tensor::zeros([1, 16, 2, 2], (Kind::BFloat16, Device::Cpu));
        let launches = |vae: &Autoencoder| {
            drop(vae.decode(&latents).unwrap());
            counter.take().values().map(|count| count.launches).sum::<u64>()
        };
        assert_eq!(launches(&files.read().unwrap()), 0);
        assert!(launches(&files.open().unwrap()) > 0);
    }

    fn reason(options: &KernelOptions, config: &DitConfig, device: Device, compute: Kind) -> Option<String> {
        KernelSource::begin(options, config, device, compute).missing()
    }

    #[test]
    fn kernels_are_missing_only_where_runs_would_use_them() {
        let (wanted, config) = (KernelOptions::default(), DitConfig::kontext_dev());
        let (cuda, bf16) = (Device::Cuda(1000), Kind::BFloat16);
        assert_eq!(reason(&wanted, &config, Device::Cpu, bf16), None);
        assert_eq!(reason(&wanted, &config, cuda, Kind::Float), None);
        let unwanted = KernelOptions {
            wanted: false,
            ..wanted.clone()
        };
        assert_eq!(reason(&unwanted, &config, cuda, bf16), None);
        // No machine has this device.
        assert!(reason(&wanted, &config, cuda, bf16).is_some());
        let narrow = DitConfig {
            head_dim: 96,
            axes_dim: [12, 42, 42],
            ..config
        };
        let said = reason(&wanted, &narrow, cuda, bf16).unwrap();
        assert!(said.contains("head_dim"), "{said}");
    }
}
