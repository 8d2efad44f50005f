//! The kernels of attention, as a run may choose them, and heads to try them on.

use std::path::{Path, PathBuf};

use kontext::{Attention, Device, Kind, Tensor};
use kontext_nn::AttentionBackend;

use crate::device;

/// Heads of FLUX.1, and their width.
pub(crate) const HEADS: i64 = 24;
pub(crate) const WIDTH: i64 = 128;
/// The compute capability for which the kit's FlashAttention 3 has fp8, and cuDNN is libtorch's choice.
pub(crate) const HOPPER: (i32, i32) = (9, 0);

/// Returns all choices with their names in cases. `fa3` is the folder that holds `fa3_fwd`.
pub(crate) fn choices(fa3: Option<&Path>) -> Vec<(&'static str, Option<Attention>)> {
    let library: Option<PathBuf> = fa3.map(|folder| folder.join("fa3_fwd").join("_C.abi3.so"));
    vec![
        ("automatic", Some(Attention::Automatic)),
        ("cudnn", Some(Attention::CuDnn)),
        ("flash", Some(Attention::Flash)),
        ("memory-efficient", Some(Attention::MemoryEfficient)),
        ("flash3", library.clone().map(|library| Attention::Flash3 { library })),
        ("flash3-fp8", library.map(|library| Attention::Flash3Fp8 { library })),
    ]
}

/// Returns the reason for which a choice is not for this device or this run, if there is one.
pub(crate) fn unfit(choice: Option<&Attention>, on: Device) -> anyhow::Result<Option<String>> {
    let Some(choice) = choice else {
        return Ok(Some("FlashAttention 3 was not given with --fa3".to_owned()));
    };
    let for_all = matches!(choice, Attention::Automatic | Attention::Flash | Attention::Math);
    if !on.is_cuda() {
        return Ok((!for_all).then(|| "this kernel is for CUDA alone".to_owned()));
    }
    let own = matches!(choice, Attention::Flash3 { .. } | Attention::Flash3Fp8 { .. });
    let capability = device::capability(on)?;
    Ok((own && capability != Some(HOPPER))
        .then(|| format!("FlashAttention 3 is for 9.0, and this card has {capability:?}")))
}

/// Opens a choice for runs in bf16 on a GPU, in f32 on a CPU.
pub(crate) fn open(choice: &Attention, on: Device) -> anyhow::Result<AttentionBackend> {
    Ok(AttentionBackend::open(choice, on, kind(on))?)
}

/// Draws queries, keys and values [1, tokens, heads, width], views of one projection, as in a step.
pub(crate) fn heads(on: Device, tokens: i64) -> anyhow::Result<[Tensor; 3]> {
    tch::manual_seed(5);
    let joint = Tensor::f_randn([1, tokens, 3 * HEADS * WIDTH], (kind(on), on))?;
    let part = |index: i64| -> anyhow::Result<Tensor> {
        let part = joint.f_narrow(2, index * HEADS * WIDTH, HEADS * WIDTH)?;
        Ok(part.f_unflatten(-1, [HEADS, WIDTH])?)
    };
    Ok([part(0)?, part(1)?, part(2)?])
}

fn kind(on: Device) -> Kind {
    device::computed_in(on, Kind::BFloat16)
}
