//! Loops of 28 steps, exact and with each mode of reuse: full width, few blocks, random weights, on the CPU; in bf16 if it
//! has units for it, else in f32.
//!
//! An edit of 256x256 pixels: 256 target tokens, 256 reference tokens, 512 text tokens. The larger the picture, the more of
//! the operations are those of the references, and the more their reuse saves. All modes run in turn, in several rounds, and
//! a mode's time is its least. Errors are those of the last latents, relative to their change by the exact loop: of random
//! weights they say that a mode computes something near, and not how good it is (`tests/reuse.rs` does, on a trained model).
//!
//! ```text
//! cargo bench --bench reuse                # all modes, two rounds, in bf16: 1.5 GB of memory
//! cargo bench --bench reuse -- 1 f32       # one round, in f32
//! cargo bench --bench reuse -- 3 magcache  # three rounds of the exact loop and the modes whose names begin so
//! cargo bench --bench reuse -- side=1024   # an edit of 1024x1024 pixels
//! ```
#![allow(clippy::unwrap_used, clippy::print_stdout)] // A benchmark that cannot run stops, and prints its table.

mod edit;

use std::time::Instant;

use edit::{Edit, STEPS, TEXT};
use kontext_core::{Kind, Result, Tensor, check};
use kontext_device::cpu;
use kontext_dit::{DitFlops, ReferenceReuse, Run, RunCounts, StepCache, StepWork};
use kontext_sampler::{Conformance, Schedule, Shift};

const BLOCKS: (i64, i64) = (1, 2);
/// Default width and height of target and reference, in pixels.
const SIDE: u32 = 256;
/// Rows of the table.
///
/// Of two modes with a `+`, the second reuses the references.
const MODES: [&str; 10] = [
    "off",
    "magcache",
    "magcache + references",
    "off + references",
    "off + references:every=7",
    "magcache:threshold=0.1,most_skips=5",
    "taylor",
    "taylor:interval=2,first=6",
    "first-block:threshold=0.12",
    "teacache",
];

/// An edit, prepared.
struct Bench {
    kind: Kind,
    edit: Edit,
    run: Run,
    sigmas: Vec<f32>,
    flops: DitFlops,
}

/// Step cache, and reuse of references.
type Mode = (StepCache, Option<ReferenceReuse>);

fn mode(text: &str) -> Mode {
    let (cache, reuse) = text.split_once(" + ").unwrap_or((text, ""));
    let reuse = Some(reuse).filter(|reuse| !reuse.is_empty());
    (cache.parse().unwrap(), reuse.map(|reuse| reuse.parse().unwrap()))
}

/// Result of a loop.
struct Loop {
    seconds: f64,
    latents: Tensor,
    work: Vec<StepWork>,
}

impl Bench {
    fn new(kind: Kind, side: u32) -> Result<Self> {
        let edit = Edit::new(BLOCKS, kind, side)?;
        let schedule = Schedule::new(STEPS, edit.grid.tokens(), Shift::dev(), Conformance::Native)?;
        let tokens = edit.grid.tokens().unsigned_abs();
        let counts = RunCounts {
            text: TEXT.unsigned_abs(),
            target: tokens,
            references: tokens,
            samples: 1,
            prompts: 1,
            steps: STEPS as u64,
        };
        Ok(Self {
            kind,
            flops: DitFlops::of(&edit.config, &counts),
            run: edit.prepare(&schedule.embedded_times(kind))?,
            edit,
            sigmas: schedule.sigmas().to_vec(),
        })
    }

    /// Runs the loop with a step cache.
    fn cached(&self, (cache, reuse): &Mode) -> Result<Loop> {
        let mut state = self.edit.dit.step_cache(cache, &self.run)?;
        if let Some(reuse) = reuse {
            state = state.reuse_references(reuse, &self.run, &self.sigmas, None)?;
        }
        let begun = Instant::now();
        let mut latents = self.edit.noise.shallow_clone();
        for (step, pair) in self.sigmas.windows(2).enumerate() {
            let velocity = self
                .edit
                .dit
                .forward_cached(&self.run, step, &latents.f_to_kind(self.kind)?, &mut state)?;
            latents = latents.f_add(
                &velocity
                    .f_to_kind(Kind::Float)?
                    .f_mul_scalar(f64::from(pair[1] - pair[0]))?,
            )?;
        }
        Ok(Loop {
            seconds: begun.elapsed().as_secs_f64(),
            latents,
            work: state.into_work(),
        })
    }
}

fn main() {
    // cargo adds `--bench`.
    let words: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    let rounds: usize = words.iter().find_map(|word| word.parse().ok()).unwrap_or(2);
    let kind = if cpu::has_bf16_units() && !words.iter().any(|word| word == "f32") {
        Kind::BFloat16
    } else {
        Kind::Float
    };
    let side = words.iter().find_map(|word| word.strip_prefix("side="));
    let side = side.map_or(SIDE, |side| side.parse().unwrap());
    let is_name = |word: &&String| word.parse::<usize>().is_err() && !word.starts_with("side=") && *word != "f32";
    let names: Vec<&String> = words.iter().filter(is_name).collect();
    let wanted = |mode: &&str| {
        let named = names.iter().any(|name| mode.starts_with(name.as_str()));
        *mode == MODES[0] || names.is_empty() || named
    };
    let modes: Vec<&str> = MODES.into_iter().filter(wanted).collect();
    let bench = Bench::new(kind, side).unwrap();
    let caches: Vec<Mode> = modes.iter().map(|text| mode(text)).collect();
    let mut loops: Vec<Loop> = caches.iter().map(|cache| bench.cached(cache).unwrap()).collect();
    for _ in 1..rounds.max(1) {
        for (best, cache) in loops.iter_mut().zip(&caches) {
            best.seconds = best.seconds.min(bench.cached(cache).unwrap().seconds);
        }
    }
    println!(
        "{side}x{side}, {kind:?}, {} + {} blocks, {STEPS} steps, {rounds} round(s)",
        BLOCKS.0, BLOCKS.1
    );
    println!("| mode | seconds | times faster | times fewer operations | computed steps | relative error |");
    println!("|---|---:|---:|---:|---:|---:|");
    let exact = &loops[0];
    let change = |looped: &Loop| &looped.latents - &bench.edit.noise;
    let flops = |looped: &Loop, (cache, _): &Mode| bench.flops.run(&looped.work, cache) as f64;
    for ((mode, cache), looped) in modes.iter().zip(&caches).zip(&loops) {
        println!(
            "| {mode} | {:.2} | {:.2} | {:.2} | {} | {:.4} |",
            looped.seconds,
            exact.seconds / looped.seconds,
            flops(exact, &caches[0]) / flops(looped, cache),
            looped.work.iter().filter(|work| **work != StepWork::Skipped).count(),
            check::relative_l2(&change(looped), &change(exact)).unwrap(),
        );
    }
}
