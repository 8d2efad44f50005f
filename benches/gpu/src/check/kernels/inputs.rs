//! Random inputs of the kernels.

use kontext::{Device, Kind, Tensor};
use kontext_kernels::KernelShape;
/// Rows of a launch: the text's, then the image's.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rows {
    pub(super) text: i64,
    pub(super) image: i64,
}

impl Rows {
    /// A few rows.
    pub(super) const FEW: Self = Self { text: 3, image: 5 };

    /// Returns the rows of an edit at 1024x1024; on a CPU, where the emulator takes milliseconds a row, some.
    pub(super) fn of_an_edit(on: Device) -> Self {
        if on.is_cuda() {
            Self { text: 512, image: 8192 }
        } else {
            Self { text: 4, image: 12 }
        }
    }

    pub(super) fn all(self) -> i64 {
        self.text + self.image
    }

    /// Returns the vectors of text and image as one for each row, [rows, width].
    pub(super) fn spread(self, [text, image]: [&Tensor; 2]) -> Tensor {
        let rows = |vector: &Tensor, count| vector.reshape([1, -1]).expand([count, -1], true);
        Tensor::cat(&[rows(text, self.text), rows(image, self.image)], 0)
    }
}

/// Returns the shape of width, width of a head and width of the MLP.
pub(super) fn shape([width, head_dim, mlp_width]: [i64; 3]) -> anyhow::Result<KernelShape> {
    Ok(KernelShape::new(width, head_dim, mlp_width)?)
}

/// Draws normal noise in bf16, `x * deviation + mean`.
pub(super) fn random(on: Device, size: &[i64], seed: i64, deviation: f64, mean: f64) -> anyhow::Result<Tensor> {
    Ok((drawn(on, size, seed)? * deviation + mean).to_kind(Kind::BFloat16))
}

/// Draws normal noise in f32 around one.
pub(super) fn weights(on: Device, size: &[i64], seed: i64) -> anyhow::Result<Tensor> {
    Ok(drawn(on, size, seed)? * 0.3 + 1.0)
}

/// Draws normal noise by the device's own generator: that of seeded runs draws on the CPU, for seconds.
fn drawn(on: Device, size: &[i64], seed: i64) -> anyhow::Result<Tensor> {
    tch::manual_seed(seed);
    Ok(Tensor::f_randn(size, (Kind::Float, on))?)
}

pub(super) fn wide(x: &Tensor) -> Tensor {
    x.to_kind(Kind::Double)
}
