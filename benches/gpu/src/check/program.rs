//! The program itself: its libtorch.

use kontext::Device;
use kontext_device::libtorch::loaded;
use tch::Cuda;

use crate::row::Outcome;
use crate::suite::Case;

/// Returns the cases. `defaults` holds libtorch's defaults for TF32 in convolutions and in matrix products of
/// f32.
pub(super) fn cases(on: Device, defaults: (bool, bool)) -> Vec<Case<'static>> {
    vec![Case::new("program/libtorch", move || libtorch(on, defaults))]
}

fn libtorch(on: Device, (convolutions, products): (bool, bool)) -> anyhow::Result<Outcome> {
    let mut outcome = Outcome::default();
    outcome.value("device", format!("{on:?}"));
    for name in ["libtorch_cpu.so", "libtorch_cuda.so", "libcudnn.so.9"] {
        outcome.value(
            name,
            loaded(name).map_or_else(|| "not loaded".to_owned(), |file| file.display().to_string()),
        );
    }
    outcome.value("CUDA devices", Cuda::device_count());
    outcome.value("cuDNN", Cuda::cudnn_is_available());
    outcome.value("threads", tch::get_num_threads());
    outcome.value("TF32 in convolutions by default", convolutions);
    outcome.value("TF32 in products by default", products);
    outcome.holds(!on.is_cuda() || Cuda::cudnn_is_available(), || {
        "libtorch finds no cuDNN".to_owned()
    });
    Ok(outcome)
}
