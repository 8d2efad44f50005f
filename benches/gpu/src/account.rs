//! A step of FLUX.1 counted on a CPU: operations of libtorch, launches of own kernels, bytes
//! of both.
//!
//! A model of about a quarter of the width, with the same proportions, computes steps with one and with two blocks of each
//! kind. The differences are those of a block, and 19 double and 38 single ones make the published model's step. Own
//! kernels are launched on a target that only counts. Bytes are in units of U, one pass over the sequence in bf16.

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::Arc;
use std::time::Instant;

use anyhow::ensure;
use kontext::{Conditioning, Device, Dit, DitConfig, Kind, Tensor, Tokens, Weights};
use kontext_dit::RunInput;
use kontext_kernels::{Call, Count, Counter, Kernel, KernelShape, Kernels, Launch};

use crate::device::{Operations, operations};

/// Blocks of the published model.
const DOUBLE: f64 = 19.0;
const SINGLE: f64 = 38.0;
/// Tokens of text, target and reference: a sixteenth of an edit's at 1024x1024.
const TOKENS: [i64; 3] = [32, 256, 256];
/// One pass over the sequence of an edit at 1024x1024 in bf16, in bytes.
const U: f64 = 8704.0 * 3072.0 * 2.0;
/// Timed steps.
const STEPS: usize = 20;

/// A target of launches that does nothing.
#[derive(Debug)]
struct Nowhere;

impl Launch for Nowhere {
    fn device(&self) -> Device {
        Device::Cpu
    }

    fn has_fp8(&self) -> bool {
        true
    }

    fn launch(&self, _: Call<'_>) -> kontext::Result<()> {
        Ok(())
    }
}

/// An account of a step, of this many parts or extrapolated from some.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Account {
    /// Matrix products and attentions by libtorch.
    pub(crate) products: f64,
    /// Its other operations.
    pub(crate) others: f64,
    /// Launches of own kernels.
    pub(crate) own: f64,
    /// Passes over the sequence by the others, in U.
    pub(crate) passes: f64,
    /// Those by own kernels.
    pub(crate) own_passes: f64,
}

/// Prints the account of a step with own kernels and without, as a table.
pub(crate) fn print() -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    for line in table()? {
        writeln!(out, "{line}")?;
    }
    let [plain, fused] = host_ms()?;
    writeln!(out, "host: {plain:.1} ms without kernels, {fused:.1} ms with them")?;
    Ok(())
}

/// Returns the lines of the table.
fn table() -> anyhow::Result<Vec<String>> {
    let row = |name: &str, with: bool| -> anyhow::Result<String> {
        let step = step(with)?;
        let passes = step.passes + step.own_passes;
        Ok(format!(
            "| {name} | {:.0} | {:.0} | {:.0} | {passes:.0} U = {:.0} GB |",
            step.products,
            step.others,
            step.own,
            passes * U / 1e9,
        ))
    };
    Ok(vec![row("without kernels", false)?, row("with kernels", true)?])
}

/// Returns the account of a step of the published model.
pub(crate) fn step(with_kernels: bool) -> anyhow::Result<Account> {
    let [base, double, single] = [(1, 1), (2, 1), (1, 2)].map(|blocks| counted(blocks, with_kernels));
    let (base, double, single) = (base?, double?, single?);
    let whole = |of: fn(&Account) -> f64| {
        let (base, double, single) = (of(&base), of(&double), of(&single));
        base + (DOUBLE - 1.0) * (double - base) + (SINGLE - 1.0) * (single - base)
    };
    Ok(Account {
        products: whole(|account| account.products),
        others: whole(|account| account.others),
        own: whole(|account| account.own),
        passes: whole(|account| account.passes),
        own_passes: whole(|account| account.own_passes),
    })
}

/// Sizes with 24 heads of a width, so that all tensors have the published proportions.
fn config((double_blocks, single_blocks): (i64, i64), head_dim: i64) -> DitConfig {
    let side = head_dim * 7 / 32 * 2;
    DitConfig {
        head_dim,
        axes_dim: [head_dim - 2 * side, side, side],
        mlp_width: 24 * head_dim * 4,
        double_blocks,
        single_blocks,
        context_dim: 64,
        pooled_dim: 64,
        ..DitConfig::kontext_dev()
    }
}

fn counted(blocks: (i64, i64), with_kernels: bool) -> anyhow::Result<Account> {
    // Without kernels a width that this library's own loops for CPUs leave to libtorch, as a GPU does.
    let config = config(blocks, if with_kernels { 32 } else { 40 });
    let (step, counter) = Step::new(&config, TOKENS, with_kernels)?;
    counter.take();
    let operations = operations(|| step.forward())?;
    let counts: BTreeMap<Kernel, Count> = counter.take();
    ensure!(counts.is_empty() != with_kernels, "own kernels were launched or not");
    let pass = (TOKENS.iter().sum::<i64>() * config.width() * 2) as f64;
    let of = |value: fn(&Count) -> u64| counts.values().map(value).sum::<u64>() as f64;
    let Operations {
        products,
        others,
        bytes,
    } = operations;
    Ok(Account {
        products: products as f64,
        others: others as f64,
        own: of(|count| count.launches),
        passes: bytes as f64 / pass,
        own_passes: of(|count| count.read + count.written) / pass,
    })
}

/// Returns the milliseconds of a step of all blocks at the least width and with few tokens, without own kernels and
/// with launches that do nothing: about what the host takes to submit a step.
fn host_ms() -> anyhow::Result<[f64; 2]> {
    let config = DitConfig {
        heads: 2,
        mlp_width: 256,
        ..config((DOUBLE as i64, SINGLE as i64), 32)
    };
    let mut least = [f64::INFINITY; 2];
    let steps = [
        Step::new(&config, [4, 4, 4], false)?.0,
        Step::new(&config, [4, 4, 4], true)?.0,
    ];
    for _ in 0..STEPS {
        for (least, step) in least.iter_mut().zip(&steps) {
            let begun = Instant::now();
            step.forward()?;
            *least = least.min(begun.elapsed().as_secs_f64() * 1e3);
        }
    }
    Ok(least)
}

/// A step in bf16.
struct Step {
    dit: Dit,
    run: kontext_dit::Run,
    target: Tensor,
}

impl Step {
    fn new(
        config: &DitConfig,
        [text, target, reference]: [i64; 3],
        with_kernels: bool,
    ) -> anyhow::Result<(Self, Arc<Counter>)> {
        let counter = Arc::new(Counter::new(Arc::new(Nowhere)));
        let mut dit = Dit::new(&Weights::synthetic(3).kind(Kind::BFloat16), config, |_| ())?;
        if with_kernels {
            let shape = KernelShape::new(config.width(), config.head_dim, config.mlp_width)?;
            dit.set_kernels(Some(Kernels::launched_by(Arc::<Counter>::clone(&counter), &shape)));
        }
        let zeros = |size: &[i64]| Tensor::f_zeros(size, (Kind::BFloat16, Device::Cpu));
        let ids = |count: i64| Tensor::f_zeros([count, 3], (Kind::Float, Device::Cpu));
        let context = Tokens::new(zeros(&[1, reference, config.in_channels])?, ids(reference)?)?;
        let run = dit.prepare(&RunInput {
            conditioning: &Conditioning {
                prompt_embeds: zeros(&[1, text, config.context_dim])?,
                pooled: zeros(&[1, config.pooled_dim])?,
            },
            target_ids: &ids(target)?,
            context: Some(&context),
            times: &[600.0],
            guidance: Some(2500.0),
        })?;
        let target = zeros(&[1, target, config.in_channels])?;
        Ok((Self { dit, run, target }, counter))
    }

    fn forward(&self) -> anyhow::Result<()> {
        drop(self.dit.forward(&self.run, 0, &self.target)?);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One launch for the queries and keys of a block; a residual for each branch, and the first norm.
    #[test]
    fn own_kernels_are_launched_as_often_as_there_are_norms() {
        let step = step(true).expect("counted");
        assert!((step.own - (57.0 + 1.0 + 2.0 * 19.0 + 38.0)).abs() < 1e-9, "{step:?}");
    }

    /// The page has what is counted, so that a change of the step changes it.
    #[test]
    fn the_page_has_the_account() {
        let page = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/gpu.md");
        let page = std::fs::read_to_string(page).expect("read");
        for line in table().expect("counted") {
            assert!(
                page.contains(&line),
                "missing in docs/gpu.md (text of benches/gpu/report.py): {line}"
            );
        }
    }
}
