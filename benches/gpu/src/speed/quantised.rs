//! Steps of blocks that are quantised to fp8 as they are read, with own kernels and without.
//!
//! A few blocks, in the proportion of the published model's: quantising all of its weights takes longer than their steps.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Instant;

use kontext::{Device, Dit, DitConfig};
use kontext_core::check::relative_l2;
use kontext_device::cuda;

use super::shared::{Shared, WORKS, Work};
use super::timing::timed;
use crate::pace::pace;
use crate::row::Outcome;
use crate::suite::Case;
use crate::{device, own, quantised};

/// Most double and single blocks.
const BLOCKS: [i64; 2] = [3, 6];
/// Largest distance of a step by kernels from one without: about twice the error of either by products in fp8
/// (docs/quantisation.md).
const APART: f64 = 0.1;

/// A model, made by the first case and dropped with the last.
type Made = Rc<RefCell<Option<Dit>>>;

pub(super) fn cases(shared: &Rc<Shared>) -> Vec<Case<'static>> {
    let (made, [edit, t2i, _]) = (Made::default(), WORKS);
    let case = |work: Work| {
        let (shared, made) = (Rc::clone(shared), Rc::clone(&made));
        // Not a name of an opponent's case, whose steps are of all blocks.
        Case::new(format!("blocks quantised to fp8/{}", work.name), move || {
            step(&shared, &made, work)
        })
    };
    [edit, t2i].map(case).into()
}

/// Times a step with kernels as others are timed, then its pace without them.
fn step(shared: &Shared, made: &Made, work: Work) -> anyhow::Result<Outcome> {
    let on = shared.device;
    if let Device::Cuda(index) = on
        && !cuda::has_fp8(index)?
    {
        return Ok(Outcome::skipped("fp8 needs compute capability 8.9 or newer"));
    }
    let all = &shared.scale.sizes.dit;
    let config = DitConfig {
        double_blocks: all.double_blocks.min(BLOCKS[0]),
        single_blocks: all.single_blocks.min(BLOCKS[1]),
        ..all.clone()
    };
    let mut outcome = Outcome::default();
    let mut made = made.borrow_mut();
    let dit = match made.as_mut() {
        Some(dit) => dit,
        None => {
            let begun = Instant::now();
            let dit = Dit::new(&quantised::weights(&config)?.device(on), &config, |_| ())?;
            device::synchronize(on)?;
            outcome.value("load_s", begun.elapsed().as_secs_f64());
            made.insert(dit)
        }
    };
    let entrance = shared.entrance(work)?;
    dit.set_kernels(None);
    let run = entrance.prepare(dit)?;
    let plain = dit.forward(&run, 0, &entrance.target)?;
    let unfused = pace(on, || Ok(dit.forward(&run, 0, &entrance.target)?))?.ms;
    if on.is_cuda() {
        dit.set_kernels(Some(own::kernels(&own::shape_of(&config)?, on)?));
    } else {
        outcome.note("computed in f32, for which there are no kernels");
    }
    let run = entrance.prepare(dit)?;
    timed(on, &mut outcome, || Ok(dit.forward(&run, 0, &entrance.target)?))?;
    let fused = dit.forward(&run, 0, &entrance.target)?;
    outcome.at_most("relative_l2", relative_l2(&fused, &plain)?, APART);
    outcome.value("ms, unfused", unfused);
    outcome.value("double blocks", config.double_blocks);
    outcome.value("single blocks", config.single_blocks);
    Ok(outcome)
}
