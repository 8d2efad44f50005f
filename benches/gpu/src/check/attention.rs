//! Each kernel of attention against f64, and libtorch's choice.

use kontext::{Attention, AttentionKernel, Device, Kind, Tensor};
use kontext_core::check::relative_l2;
use kontext_nn::ops::attend_tokens;

use super::world::World;
use crate::attention::{HEADS, HOPPER, WIDTH, choices, heads, open, unfit};
use crate::device;
use crate::row::Outcome;
use crate::suite::Case;

/// Tokens: more than a tile of any kernel, and no multiple of one.
const TOKENS: i64 = 333;
/// Largest error in bf16, of probabilities and results that are rounded; measured on a CPU: 3e-3.
const BF16: f64 = 8e-3;
/// Largest error in f32.
const F32: f64 = 1e-5;
/// Largest error with heads rounded to e4m3; measured on a CPU: 3 %.
const FP8: f64 = 6e-2;

pub(super) fn cases(world: &World) -> Vec<Case<'_>> {
    let on = world.device;
    let mut cases = vec![Case::new("attention/libtorch's choice", move || chosen(on))];
    // FlashAttention 3 comes last: opening its library cannot be undone.
    let all = [("math", Some(Attention::Math))].into_iter();
    for (name, choice) in all.chain(choices(world.fa3.as_deref())) {
        cases.push(Case::new(format!("attention/{name}"), move || {
            against_f64(choice.as_ref(), on)
        }));
    }
    cases
}

/// Checks that libtorch chooses cuDNN on a card of compute capability 9.0.
fn chosen(on: Device) -> anyhow::Result<Outcome> {
    let mut outcome = Outcome::default();
    let kernel = open(&Attention::Automatic, on)?.kernel(HEADS, WIDTH)?;
    outcome.value("kernel", kernel.to_string());
    let capability = device::capability(on)?;
    if let Some((major, minor)) = capability {
        outcome.value("compute capability", format!("{major}.{minor}"));
    }
    let expected = match capability {
        None => Some(AttentionKernel::Flash),
        Some(HOPPER) => Some(AttentionKernel::CuDnn),
        Some(_) => None,
    };
    if let Some(expected) = expected {
        outcome.holds(kernel == expected, || {
            format!("libtorch chose {kernel}, expected is {expected}")
        });
    }
    Ok(outcome)
}

fn against_f64(choice: Option<&Attention>, on: Device) -> anyhow::Result<Outcome> {
    let reason = unfit(choice, on)?;
    let (None, Some(choice)) = (reason.as_ref(), choice) else {
        return Ok(Outcome::skipped(reason.unwrap_or_default()));
    };
    let [q, k, v] = heads(on, TOKENS)?;
    let got = open(choice, on)?.scope(|| attend_tokens(&q, &k, &v))?;
    let error = relative_l2(&got, &exact([&q, &k, &v])?)?;
    let bound = match (choice, on) {
        (Attention::Flash3Fp8 { .. }, _) => FP8,
        (_, Device::Cpu) => F32,
        _ => BF16,
    };
    let mut outcome = Outcome::default();
    outcome.at_most("relative L2", error, bound);
    Ok(outcome)
}

/// Computes attention in f64 by matrix products; returns [1, tokens, heads * width].
fn exact(heads: [&Tensor; 3]) -> anyhow::Result<Tensor> {
    let [q, k, v] = heads.map(|x| x.transpose(1, 2).to_kind(Kind::Double));
    let scores = q.f_matmul(&k.transpose(-2, -1))? / (WIDTH as f64).sqrt();
    let out = scores.f_softmax(-1, Kind::Double)?.f_matmul(&v)?;
    Ok(out.transpose(1, 2).f_flatten(2, 3)?)
}
