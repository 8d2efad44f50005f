//! A step of FLUX.1 counted on a CPU: operations of libtorch, launches of own kernels, bytes of both, and the time of
//! the host.
//!
//! A model of about a quarter of the width, with the same proportions, computes steps with one and with two blocks of each
//! kind. The differences are those of a block, and 19 double and 38 single ones make the published model's step. Own
//! kernels are launched on a target that only counts. Bytes are in units of U, one pass over the sequence in bf16. A
//! product in fp8 counts as one operation, which it is on a GPU.

#[cfg(test)]
mod flops;
mod fp8_products;
mod step;

use std::collections::BTreeMap;
use std::io::Write;
use std::time::Instant;

use anyhow::ensure;
use kontext::DitConfig;
use kontext_kernels::{Count, Kernel};

use self::fp8_products::Fp8Products;
use self::step::Step;
use crate::device::operations;

/// Blocks of the published model.
const DOUBLE: f64 = 19.0;
const SINGLE: f64 = 38.0;
/// Tokens of text, target and reference: a sixteenth of an edit's at 1024x1024.
const TOKENS: [i64; 3] = [32, 256, 256];
/// One pass over the sequence of an edit at 1024x1024 in bf16, in bytes.
const U: f64 = 8704.0 * 3072.0 * 2.0;
/// Timed steps.
const STEPS: usize = 50;
/// Rows of the table.
const WAYS: [(&str, Way); 4] = [
    ("bf16, without kernels", Way::of(false, false)),
    ("bf16, with kernels", Way::of(false, true)),
    ("fp8, without kernels", Way::of(true, false)),
    ("fp8, with kernels", Way::of(true, true)),
];

/// Way to compute a step.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Way {
    /// The blocks' weights are in fp8, and so are the products.
    fp8: bool,
    kernels: bool,
}

impl Way {
    const fn of(fp8: bool, kernels: bool) -> Self {
        Self { fp8, kernels }
    }

    /// Returns the width of a head. Without kernels it is one that this library's own loops for CPUs leave to libtorch, as
    /// a GPU does.
    const fn head_dim(self) -> i64 {
        if self.kernels { 32 } else { 40 }
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

/// Prints the account of a step in each way, as a table.
pub(crate) fn print() -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    // Operations of few elements, whose threads would only wait.
    tch::set_num_threads(1);
    for (name, way) in WAYS {
        let line = line(name, &step(way)?);
        let host = host_ms(way)?.map_or(String::new(), |ms| format!("{ms:.1} ms"));
        writeln!(out, "{line} {host} |")?;
    }
    Ok(())
}

/// Returns the line of the table without its last column, the host's time.
fn line(name: &str, step: &Account) -> String {
    let passes = step.passes + step.own_passes;
    format!(
        "| {name} | {:.0} | {:.0} | {:.0} | {passes:.0} U = {:.0} GB |",
        step.products,
        step.others,
        step.own,
        passes * U / 1e9,
    )
}

/// Returns the account of a step of the published model.
pub(crate) fn step(way: Way) -> anyhow::Result<Account> {
    let [base, double, single] = [(1, 1), (2, 1), (1, 2)].map(|blocks| counted(blocks, way));
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

fn counted(blocks: (i64, i64), way: Way) -> anyhow::Result<Account> {
    let config = config(blocks, way.head_dim());
    let (step, counter) = Step::new(&config, TOKENS, way)?;
    counter.take();
    let mut counted = operations(|| step.forward())?;
    let counts: BTreeMap<Kernel, Count> = counter.take();
    ensure!(counts.is_empty() != way.kernels, "own kernels were launched or not");
    if way.fp8 {
        let products = Fp8Products::new(&config, TOKENS, way)?;
        let inner = operations(|| products.compute())?;
        ensure!(inner.products == products.count() as u64, "products in parts");
        counted.others -= inner.others;
        counted.bytes -= inner.bytes;
    }
    let pass = (TOKENS.iter().sum::<i64>() * config.width() * 2) as f64;
    let of = |value: fn(&Count) -> u64| counts.values().map(value).sum::<u64>() as f64;
    Ok(Account {
        products: counted.products as f64,
        others: counted.others as f64,
        own: of(|count| count.launches),
        passes: counted.bytes as f64 / pass,
        own_passes: of(|count| count.read + count.written) / pass,
    })
}

/// Returns the milliseconds of a step of all blocks at the least width and with few tokens, where own kernels are launches
/// that do nothing: about what the host takes to submit a step. `None` in fp8, whose products are several operations
/// on a CPU.
fn host_ms(way: Way) -> anyhow::Result<Option<f64>> {
    if way.fp8 {
        return Ok(None);
    }
    let config = DitConfig {
        heads: 2,
        mlp_width: 256,
        ..config((DOUBLE as i64, SINGLE as i64), way.head_dim())
    };
    let (step, _) = Step::new(&config, [4, 4, 4], way)?;
    let mut least = f64::INFINITY;
    for _ in 0..STEPS {
        let begun = Instant::now();
        step.forward()?;
        least = least.min(begun.elapsed().as_secs_f64() * 1e3);
    }
    Ok(Some(least))
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use super::*;

    /// Steps in each of [`WAYS`].
    static STEPS: LazyLock<[Account; 4]> = LazyLock::new(|| {
        // Two that wait for each other next to other tests take four times as long.
        tch::set_num_threads(1);
        WAYS.map(|(_, way)| step(way).expect("counted"))
    });

    /// One launch for the queries and keys of a block; a residual for each branch, and the first norm. In fp8 the
    /// MLP's activation, too: in a double block of each stream, and of the attention.
    #[test]
    fn own_kernels_are_launched_as_often_as_there_are_norms() {
        let norms = 57.0 + 1.0 + 2.0 * 19.0 + 38.0;
        let expected = [0.0, norms, 0.0, norms + 3.0 * 19.0 + 38.0];
        for (step, expected) in STEPS.iter().zip(expected) {
            assert!((step.own - expected).abs() < 1e-9, "{step:?}");
        }
    }

    /// In fp8 the single blocks' last product is one by kernels, and two without; the others are those of bf16.
    #[test]
    fn products_in_fp8_count_as_one_operation_each() {
        let all = STEPS[0].products;
        let fewer = STEPS.each_ref().map(|step| all - step.products);
        assert!(
            fewer
                .iter()
                .zip([0.0, 0.0, 0.0, 38.0])
                .all(|(a, b)| (a - b).abs() < 1e-9),
            "{fewer:?}"
        );
    }

    /// The page has what is counted, so that a change of the step changes it.
    #[test]
    fn the_page_has_the_account() {
        let page = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/gpu.md");
        let page = std::fs::read_to_string(page).expect("read");
        for ((name, _), step) in WAYS.iter().zip(STEPS.iter()) {
            let line = line(name, step);
            assert!(
                page.contains(&line),
                "missing in docs/gpu.md (text of benches/gpu/report.py): {line}"
            );
        }
    }
}
