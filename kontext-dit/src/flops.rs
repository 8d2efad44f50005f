//! Floating-point operations of a run, computed from the configuration and the sizes.

use crate::{DitConfig, StepCache, StepWork};

/// Features of the sinusoidal embeddings.
const SINUSOID: u64 = 256;

/// Widths of a run that determine its operations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RunCounts {
    /// Tokens of text (T).
    pub text: u64,
    /// Tokens of the target (L).
    pub target: u64,
    /// Tokens of the references (R).
    pub references: u64,
    /// Samples of a step (N).
    pub samples: u64,
    /// Prompts that the run is prepared for: 1, or one for each sample.
    pub prompts: u64,
    /// Steps.
    pub steps: u64,
}

/// Floating-point operations of a run of the transformer: two for each multiplication of its matrix products and
/// attentions. Norms, rotations and other operations element by element are left out.
///
/// # Example
/// An edit at 1024x1024 in 28 steps:
/// ```
/// use kontext_dit::{DitConfig, DitFlops, RunCounts, StepCache};
/// let counts = RunCounts { text: 512, target: 4096, references: 4096, samples: 1, prompts: 1, steps: 28 };
/// let flops = DitFlops::of(&DitConfig::kontext_dev(), &counts);
/// let run = |cache: &str| {
///     let cache: StepCache = cache.parse()?;
///     Ok::<_, kontext_core::Error>(flops.run(&cache.fewest(28, true), &cache) as f64)
/// };
/// assert!((run("off")? / run("magcache")? - 2.0).abs() < 0.01);
/// # Ok::<(), kontext_core::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct DitFlops {
    /// Work once a run: modulation of all steps, text and references.
    pub prepare: u64,
    /// Input projection of the target in a step.
    pub enter: u64,
    /// First block in a step.
    pub first_block: u64,
    /// All blocks in a step.
    pub blocks: u64,
    /// Last layer in a step.
    pub leave: u64,
    widths: Widths,
    blocks_of: [u64; 2],
    counts: RunCounts,
}

impl DitFlops {
    /// Counts the operations of a run.
    #[must_use]
    pub fn of(config: &DitConfig, run: &RunCounts) -> Self {
        let widths = Widths::of(config);
        let (double, single) = (config.double_blocks.unsigned_abs(), config.single_blocks.unsigned_abs());
        let rows = run.text.saturating_add(run.target).saturating_add(run.references);
        let last_only = double == 0 && single == 1;
        let first = widths.block(if last_only { run.target } else { rows }, rows, rows);
        let Widths {
            width, channels, out, ..
        } = widths;
        Self {
            prepare: widths.prepare(config, run),
            enter: times(&[2, run.samples, run.target, channels, width]),
            first_block: times(&[run.samples, first]),
            blocks: times(&[run.samples, widths.blocks([double, single], run.target, rows, rows)]),
            leave: times(&[2, run.samples, run.target, width, out]),
            widths,
            blocks_of: [double, single],
            counts: *run,
        }
    }

    /// Returns the operations of a step. Those of a first block that ends a step are counted with the references, which it may
    /// be without.
    #[must_use]
    pub fn step(&self, work: StepWork, cache: &StepCache) -> u64 {
        let rows = match work {
            StepWork::Edited(rows) => u64::from(rows),
            StepWork::Estimated => 0,
            _ => self.counts.target,
        };
        let ends = self.ends(rows);
        let more = match (work, cache) {
            // The measured input is projected apart from the computed one.
            (StepWork::Computed, StepCache::TeaCache(_)) => self.blocks.saturating_add(self.enter),
            (StepWork::Computed, _) => self.blocks,
            (StepWork::WithoutReferences, StepCache::TeaCache(_)) => self.reduced(rows).saturating_add(self.enter),
            (StepWork::WithoutReferences | StepWork::Edited(_), _) => self.reduced(rows),
            (StepWork::Estimated, _) => 0,
            (StepWork::Skipped, StepCache::FirstBlock(_)) => self.first_block,
            (StepWork::Skipped, _) => 0,
        };
        ends.saturating_add(more)
    }

    /// Returns the operations of input projection and last layer for some rows of the target.
    fn ends(&self, rows: u64) -> u64 {
        let Widths {
            width, channels, out, ..
        } = self.widths;
        times(&[2, self.counts.samples, rows, width, channels.saturating_add(out)])
    }

    /// Returns the operations of all blocks for the text and some rows of the target.
    fn reduced(&self, rows: u64) -> u64 {
        let RunCounts {
            text,
            target,
            references,
            samples,
            ..
        } = self.counts;
        if rows == 0 {
            return 0;
        }
        let all = text.saturating_add(target).saturating_add(references);
        let blocks = self.widths.blocks(self.blocks_of, rows, text.saturating_add(rows), all);
        times(&[samples, blocks])
    }

    /// Returns the operations of a run whose steps do this work.
    #[must_use]
    pub fn run(&self, work: &[StepWork], cache: &StepCache) -> u64 {
        let steps = work.iter().map(|work| self.step(*work, cache));
        steps.fold(self.prepare, u64::saturating_add)
    }
}

/// Widths of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Widths {
    width: u64,
    mlp: u64,
    channels: u64,
    out: u64,
}

impl Widths {
    fn of(config: &DitConfig) -> Self {
        Self {
            width: config.width().unsigned_abs(),
            mlp: config.mlp_width.unsigned_abs(),
            channels: config.in_channels.unsigned_abs(),
            out: config.out_channels.unsigned_abs(),
        }
    }

    /// Returns the operations of all double and single blocks for one sample: of `rows` tokens that attend to `keys`, with
    /// `target` rows in the result. The last single block computes keys and values of all rows, and the rest for the target.
    fn blocks(&self, [double, single]: [u64; 2], target: u64, rows: u64, keys: u64) -> u64 {
        let whole = self.block(rows, rows, keys);
        match single.checked_sub(1) {
            Some(others) => {
                times(&[double.saturating_add(others), whole]).saturating_add(self.block(target, rows, keys))
            }
            None => times(&[double, whole]),
        }
    }

    /// Returns the operations of a block, of either kind, for one sample: queries, output and MLP of `queries` tokens,
    /// keys and values of `projected`, and attention to `keys`.
    fn block(&self, queries: u64, projected: u64, keys: u64) -> u64 {
        let Self { width, mlp, .. } = *self;
        let products = [
            // Queries and output.
            times(&[2, queries, width, 2, width]),
            // Keys and values.
            times(&[2, projected, width, 2, width]),
            // Scores, and their sums of values.
            times(&[2, 2, queries, keys, width]),
            times(&[2, 2, queries, width, mlp]),
        ];
        products.into_iter().fold(0, u64::saturating_add)
    }

    fn prepare(&self, config: &DitConfig, run: &RunCounts) -> u64 {
        let width = self.width;
        let [double, single] = [config.double_blocks, config.single_blocks].map(i64::unsigned_abs);
        let embedder = |rows: u64, input: u64| times(&[2, rows, width, input.saturating_add(width)]);
        // Shift, scale and gate: two of them for each stream of a double block, one for a single block; no gate at the end.
        let vectors = times(&[12, double])
            .saturating_add(times(&[3, single]))
            .saturating_add(2);
        let products = [
            times(&[2, run.prompts, run.text, config.context_dim.unsigned_abs(), width]),
            times(&[2, run.references, self.channels, width]),
            embedder(run.steps, SINUSOID),
            embedder(u64::from(config.guidance_embed), SINUSOID),
            embedder(run.prompts, config.pooled_dim.unsigned_abs()),
            times(&[2, run.steps, run.prompts, width, width, vectors]),
        ];
        products.into_iter().fold(0, u64::saturating_add)
    }
}

fn times(factors: &[u64]) -> u64 {
    factors.iter().copied().fold(1, u64::saturating_mul)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ReferenceReuse;

    #[test]
    fn an_edit_at_1024_pixels_has_the_expected_fewer_operations() {
        let counts = RunCounts {
            text: 512,
            target: 4096,
            references: 4096,
            samples: 1,
            prompts: 1,
            steps: 28,
        };
        let flops = DitFlops::of(&DitConfig::kontext_dev(), &counts);
        let sigmas = vec![0.0; 29];
        let run = |cache: &str, reuse: Option<ReferenceReuse>| {
            let cache: StepCache = cache.parse().unwrap();
            let work = cache.schedule_with(reuse.as_ref(), &sigmas, true).unwrap();
            flops.run(&work, &cache) as f64
        };
        let exact = run("off", None);
        for (cache, reuse, expected) in [
            ("magcache", None, 2.0),
            ("off", Some(ReferenceReuse::default()), 1.47),
            ("magcache", Some(ReferenceReuse::default()), 2.40),
        ] {
            let ratio = exact / run(cache, reuse.clone());
            assert!((ratio - expected).abs() < 0.01, "{cache}, {reuse:?}: {ratio}");
        }
    }
}
