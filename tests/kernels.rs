//! The kernels of a pipeline's autoencoder, run by the emulator: used in the conventions of this library only.
#![cfg(target_os = "linux")] // The emulator's.
#![allow(clippy::unwrap_used)] // In helper functions of a test.

use std::sync::Arc;

use image::RgbImage;
use kontext::{Conformance, Device, Kind, ModelSizes, Pipeline, PipelineBuilder, Request};
use kontext_emulator::Emulator;
use kontext_kernels::{Counter, Kernel, KernelShape, Kernels};

/// Norms of the encoder and of the decoder.
const NORMS: u64 = 22 + 30;

fn builder() -> PipelineBuilder {
    Pipeline::builder().device(Device::Cpu).compute(Kind::BFloat16)
}

/// Builds a pipeline whose autoencoder was given kernels.
fn pipeline(builder: &PipelineBuilder) -> (Pipeline, Arc<Counter>) {
    let counter = Arc::new(Counter::new(Arc::new(Emulator::default())));
    let shape = KernelShape::new(64, 32, 256).unwrap();
    let mut parts = builder.random_parts(&ModelSizes::small(), 7).unwrap();
    parts.defaults.sizes = Some(vec![[32, 48]]);
    parts
        .vae
        .set_kernels(Some(Kernels::launched_by(counter.clone(), &shape)));
    (builder.assemble(parts).unwrap(), counter)
}

/// Returns the number of norms since the last call.
fn norms(counter: &Counter) -> u64 {
    let counts = counter.take();
    counts.get(&Kernel::GroupNorm).map_or(0, |count| count.launches)
}

#[test]
fn an_autoencoder_computes_by_kernels_in_the_conventions_of_this_library() {
    let (fused, counter) = pipeline(&builder());
    let (plain, unused) = pipeline(&builder().kernels(false));
    let image = RgbImage::from_fn(32, 48, |x, y| image::Rgb([(x * 7) as u8, (y * 5) as u8, (x + y) as u8]));
    for (conformance, expected) in [
        (Conformance::Native, NORMS),
        (Conformance::Diffusers, 0),
        (Conformance::Bfl, 0),
    ] {
        let edit = Request::edit(&image, "make it red").size(32, 48).steps(1).seed(7);
        let edit = edit.conform(conformance);
        let edit = match conformance {
            Conformance::Diffusers => edit.max_area(32 * 48),
            _ => edit,
        };
        let [by_kernels, without] = [&fused, &plain].map(|pipe| pipe.run(&edit).unwrap());
        assert_eq!(norms(&counter), expected, "{conformance:?}");
        assert_eq!(by_kernels.latents == without.latents, expected == 0, "{conformance:?}");
        assert_eq!(by_kernels.image == without.image, expected == 0, "{conformance:?}");
    }
    assert_eq!(norms(&unused), 0);
}
