//! kontext's own kernels against f64, their times next to those of libtorch's operations for the same work, and
//! the time that their compilation takes.

mod compile;
mod fp8_rows;
mod group_norm;
mod inputs;
mod qk;
mod residual;
mod work;

use anyhow::Context;
use kontext::Device;
use kontext_kernels::Kernels;

use self::inputs::{Rows, shape};
use super::world::World;
use crate::own;
use crate::row::Outcome;
use crate::suite::Case;

/// Shapes of blocks: width, width of a head, width of the MLP.
const SHAPES: [(&str, [i64; 3]); 2] = [("flux", [3072, 128, 12_288]), ("small model", [192, 32, 768])];

/// A check of one kernel, on some rows.
type Check = fn(&Kernels, Rows, &mut Outcome) -> anyhow::Result<()>;

pub(super) fn cases(world: &World) -> Vec<Case<'_>> {
    let on = world.device;
    let mut cases = Vec::new();
    for (name, sizes) in SHAPES {
        cases.push(Case::new(format!("kernels/compile, {name}"), move || {
            compile::times(sizes, on)
        }));
    }
    let checks: [(&str, Check); 5] = [
        ("qk norm and rope", qk::check),
        ("residual norm", residual::check),
        ("residual norm, fp8", residual::check_fp8),
        ("gelu concat, fp8", fp8_rows::check),
        ("attention, fp8", fp8_rows::check_attention),
    ];
    for (shape, sizes) in SHAPES {
        for rows in [Rows::FEW, Rows::of_an_edit(on)] {
            for (kernel, check) in checks {
                let name = format!("kernels/{kernel}, {shape}, {} rows", rows.all());
                cases.push(Case::new(name, move || {
                    with_kernels(sizes, on, |kernels, outcome| check(kernels, rows, outcome))
                }));
            }
        }
    }
    for (channels, side) in group_norm::pictures(on) {
        let name = format!("kernels/group norm and silu, {channels} channels, {side}x{side}");
        cases.push(Case::new(name, move || {
            with_kernels(SHAPES[1].1, on, |kernels, outcome| {
                group_norm::check(kernels, channels, side, outcome)
            })
        }));
    }
    cases
}

fn with_kernels(
    sizes: [i64; 3],
    on: Device,
    check: impl Fn(&Kernels, &mut Outcome) -> anyhow::Result<()>,
) -> anyhow::Result<Outcome> {
    let kernels = own::kernels(&shape(sizes)?, on).context("the kernels")?;
    let mut outcome = Outcome::default();
    check(&kernels, &mut outcome)?;
    if !on.is_cuda() {
        outcome.note("by the emulator: times are its own");
    }
    Ok(outcome)
}
