//! Residual and modulated layer norm.

use kontext::Tensor;
use kontext_kernels::{Branch, Kernels, NormModulation};

use super::inputs::{Rows, random, wide};
use super::work::{Work, bytes_of, quantise, to_bf16, to_e4m3, values};
use crate::row::Outcome;

const EPS: f64 = 1e-6;

/// Inputs: x and y [1, rows, width]; gate, scale and shift of text and image, [1, 1, width].
struct Inputs {
    rows: Rows,
    x: Tensor,
    y: Tensor,
    vectors: [[Tensor; 3]; 2],
}

pub(super) fn check(kernels: &Kernels, rows: Rows, outcome: &mut Outcome) -> anyhow::Result<()> {
    let inputs = Inputs::new(kernels, rows)?;
    let normed = |x: &Tensor| -> anyhow::Result<Tensor> {
        inputs
            .launch(|branch, [text, image]| Ok(kernels.residual_norm(x, Some(branch), text, image, rows.text, EPS)?))
    };
    let (sum, exact) = inputs.exact();
    let changed = inputs.x.copy();
    let work = Work {
        exact: vec![sum, exact],
        results: &|| {
            let x = inputs.x.copy();
            let normed = normed(&x)?;
            Ok(vec![x, normed])
        },
        plain: &|| Ok(inputs.plain().into()),
        launch: &|| normed(&changed).map(drop),
        bytes: 4 * bytes_of([&inputs.x]),
        round: to_bf16,
    };
    work.measure(kernels.device(), outcome)
}

pub(super) fn check_fp8(kernels: &Kernels, rows: Rows, outcome: &mut Outcome) -> anyhow::Result<()> {
    if !kernels.has_fp8() {
        outcome.note("the card has no fp8");
        return Ok(());
    }
    let inputs = Inputs::new(kernels, rows)?;
    let quantised = |x: &Tensor| -> anyhow::Result<(Tensor, Tensor)> {
        inputs.launch(|branch, [text, image]| {
            Ok(kernels.residual_norm_fp8(x, Some(branch), text, image, rows.text, EPS)?)
        })
    };
    let changed = inputs.x.copy();
    let work = Work {
        exact: vec![inputs.exact().1],
        results: &|| Ok(vec![values(&quantised(&inputs.x.copy())?)]),
        plain: &|| {
            let [_, normed] = inputs.plain();
            Ok(vec![values(&quantise(&normed))])
        },
        launch: &|| quantised(&changed).map(drop),
        bytes: 7 * bytes_of([&inputs.x]) / 2 + 4 * rows.all(),
        round: to_e4m3,
    };
    work.measure(kernels.device(), outcome)
}

impl Inputs {
    fn new(kernels: &Kernels, rows: Rows) -> anyhow::Result<Self> {
        let (on, width) = (kernels.device(), kernels.shape().width());
        let vector = |seed| random(on, &[1, 1, width], seed, 0.5, 0.0);
        Ok(Self {
            rows,
            x: random(on, &[1, rows.all(), width], 1, 3.0, 1.0)?,
            y: random(on, &[1, rows.all(), width], 2, 1.0, 0.0)?,
            vectors: [
                [vector(3)?, vector(4)?, vector(5)?],
                [vector(6)?, vector(7)?, vector(8)?],
            ],
        })
    }

    /// Calls a kernel with the branch and both streams' modulation.
    fn launch<R>(
        &self,
        kernel: impl Fn(&Branch<'_>, [&NormModulation<'_>; 2]) -> anyhow::Result<R>,
    ) -> anyhow::Result<R> {
        let [text, image] = &self.vectors;
        let branch = Branch {
            y: &self.y,
            text_gate: &text[0],
            image_gate: &image[0],
        };
        let [text_norm, image_norm] = [text, image].map(|vectors| NormModulation {
            scale: &vectors[1],
            shift: &vectors[2],
        });
        kernel(&branch, [&text_norm, &image_norm])
    }

    /// Returns one of gate, scale and shift for each row.
    fn spread(&self, index: usize) -> Tensor {
        self.rows.spread([&self.vectors[0][index], &self.vectors[1][index]])
    }

    /// Returns the sum, and the norm of the sum that is rounded to bf16, in f64.
    fn exact(&self) -> (Tensor, Tensor) {
        let sum = wide(&self.x) + wide(&self.spread(0)) * wide(&self.y);
        let width = sum.size()[2];
        let normed = wide(&to_bf16(&sum)).layer_norm([width], None::<&Tensor>, None::<&Tensor>, EPS, false);
        let modulated = normed * (wide(&self.spread(1)) + 1.0) + wide(&self.spread(2));
        (sum, modulated)
    }

    /// Computes sum and norm by libtorch's operations: for each stream a multiplication with an addition, a layer
    /// norm, and another multiplication with an addition.
    fn plain(&self) -> [Tensor; 2] {
        let width = self.x.size()[2];
        let streams = [(0, self.rows.text), (self.rows.text, self.rows.image)];
        let (mut sums, mut norms) = (Vec::new(), Vec::new());
        for ((start, count), [gate, scale, shift]) in streams.into_iter().zip(&self.vectors) {
            let part = |x: &Tensor| x.narrow(1, start, count);
            let sum = part(&self.x).addcmul(&part(&self.y), gate);
            let normed = sum.layer_norm([width], None::<&Tensor>, None::<&Tensor>, EPS, false);
            norms.push(shift.addcmul(&normed, &(scale + 1.0)));
            sums.push(sum);
        }
        [Tensor::cat(&sums, 1), Tensor::cat(&norms, 1)]
    }
}
