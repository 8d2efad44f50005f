//! The library's formulas of floating-point operations, against those that libtorch is called for.

use kontext::{Conditioning, Device, Dit, DitConfig, Kind, StepCache, StepWork, Tensor, Tokens, Weights};
use kontext_dit::{DitFlops, KeptKv, KeptTokens, Region, Run, RunCounts, RunInput};

use crate::device::operations;

const TIMES: [f32; 6] = [990.0, 900.0, 750.0, 500.0, 250.0, 100.0];

fn config((double_blocks, single_blocks): (i64, i64), guidance_embed: bool) -> DitConfig {
    DitConfig {
        in_channels: 12,
        out_channels: 10,
        heads: 3,
        head_dim: 40,
        axes_dim: [8, 16, 16],
        mlp_width: 400,
        double_blocks,
        single_blocks,
        context_dim: 24,
        pooled_dim: 20,
        guidance_embed,
    }
}

fn counts(references: u64, samples: u64, prompts: u64) -> RunCounts {
    RunCounts {
        text: 7,
        target: 11,
        references,
        samples,
        prompts,
        steps: TIMES.len() as u64,
    }
}

fn prepared(dit: &Dit, counts: &RunCounts) -> anyhow::Result<Run> {
    let config = dit.config();
    let ones = |size: &[i64]| Tensor::f_ones(size, (Kind::Float, Device::Cpu));
    let [text, target, references, prompts] =
        [counts.text, counts.target, counts.references, counts.prompts].map(|count| count as i64);
    let context = Tokens::new(ones(&[1, references, config.in_channels])?, ones(&[references, 3])?)?;
    Ok(dit.prepare(&RunInput {
        conditioning: &Conditioning {
            prompt_embeds: ones(&[prompts, text, config.context_dim])?,
            pooled: ones(&[prompts, config.pooled_dim])?,
        },
        target_ids: &ones(&[target, 3])?,
        context: (references > 0).then_some(&context),
        times: &TIMES,
        guidance: Some(2500.0),
    })?)
}

/// Compares preparation and each step of runs with a step cache.
fn compare(dit: &Dit, counts: &RunCounts, mode: &str) -> anyhow::Result<Vec<StepWork>> {
    let flops = DitFlops::of(dit.config(), counts);
    let mut run = None;
    let counted = operations(|| {
        run = Some(prepared(dit, counts)?);
        Ok(())
    })?;
    assert_eq!(counted.flops, flops.prepare, "{counts:?}");
    let run = run.expect("prepared");
    let cache: StepCache = mode.parse()?;
    let mut state = dit.step_cache(&cache, &run)?;
    let size = [counts.samples as i64, counts.target as i64, dit.config().in_channels];
    let draw = || Tensor::f_randn(size, (Kind::Float, Device::Cpu));
    let (first, change) = (draw()?, draw()?);
    let mut sum = flops.prepare;
    for step in 0..TIMES.len() {
        // As in a run, latents change little from step to step.
        let x = first.f_add(&change.f_mul_scalar(0.01 * step as f64)?)?;
        let counted = operations(|| {
            let _ = dit.forward_cached(&run, step, &x, &mut state)?;
            Ok(())
        })?;
        let expected = flops.step(state.work()[step], &cache);
        assert_eq!(
            counted.flops,
            expected,
            "{mode}, step {step}, {:?}, {counts:?}",
            state.work()[step]
        );
        sum += counted.flops;
    }
    assert_eq!(sum, flops.run(state.work(), &cache));
    Ok(state.into_work())
}

#[test]
fn formulas_give_the_operations_that_are_called() -> anyhow::Result<()> {
    let modes = [
        "off",
        "magcache:threshold=10,most_skips=1,start=0",
        "taylor:interval=2,first=1",
        "first-block:threshold=10,most_skips=1",
        "teacache:threshold=10,start=0,end=1,most_skips=1",
    ];
    for (blocks, guidance) in [((2, 3), true), ((1, 0), true), ((0, 1), false), ((0, 2), true)] {
        let config = config(blocks, guidance);
        let dit = Dit::new(&Weights::synthetic(3), &config, |_| ())?;
        for counts in [counts(5, 1, 1), counts(0, 1, 1), counts(5, 2, 1), counts(5, 2, 2)] {
            for mode in modes {
                let work = compare(&dit, &counts, mode)?;
                assert_eq!(work.contains(&StepWork::Skipped), mode != "off", "{mode}");
            }
        }
    }
    Ok(())
}

/// Counts a full step, one without the references, and one of some rows.
fn compare_reduced(dit: &Dit, counts: &RunCounts) -> anyhow::Result<()> {
    let flops = DitFlops::of(dit.config(), counts);
    let run = prepared(dit, counts)?;
    let samples = counts.samples as i64;
    let x = Tensor::f_randn(
        [samples, counts.target as i64, dit.config().in_channels],
        (Kind::Float, Device::Cpu),
    )?;
    let mut kept = KeptKv::new(dit, &run, samples, KeptTokens::Image)?;
    let region = Region::new(&run, &[0, 3, 4, 9])?;
    let rows = region.gather(&x)?;
    for (step, work) in [StepWork::Computed, StepWork::WithoutReferences, StepWork::Edited(4)]
        .into_iter()
        .enumerate()
    {
        let counted = operations(|| {
            let _ = match work {
                StepWork::Computed => dit.forward_keeping(&run, step, &x, &mut kept)?,
                StepWork::WithoutReferences => dit.forward_reduced(&run, step, &x, &kept)?,
                _ => dit.forward_region(&run, step, &rows, &region, &kept)?,
            };
            Ok(())
        })?;
        let expected = flops.step(work, &StepCache::Off);
        assert_eq!(counted.flops, expected, "{work:?}, {counts:?}");
    }
    Ok(())
}

#[test]
fn formulas_of_steps_that_read_kept_keys_give_the_operations_that_are_called() -> anyhow::Result<()> {
    for blocks in [(2, 3), (1, 0), (0, 1)] {
        let dit = Dit::new(&Weights::synthetic(3), &config(blocks, true), |_| ())?;
        for counts in [counts(5, 1, 1), counts(9, 2, 1), counts(5, 2, 2)] {
            compare_reduced(&dit, &counts)?;
        }
    }
    Ok(())
}
