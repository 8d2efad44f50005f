//! The sizes that the kernels are compiled for.

use kontext_core::{Error, Result};

/// Sizes of a transformer's blocks, for which kernels are compiled. Only sizes that the kernels support can
/// be made.
///
/// # Example
/// ```
/// use kontext_kernels::KernelShape;
///
/// let flux = KernelShape::new(3072, 128, 12_288)?;
/// assert_eq!(flux.width(), 3072);
/// // Such a model stays with libtorch's operations.
/// assert!(KernelShape::new(3072, 96, 12_288).is_err());
/// # Ok::<(), kontext_core::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct KernelShape {
    width: i64,
    head_dim: i64,
    mlp_width: i64,
}

/// Widths of a head: 4, 8 or 16 threads, which divide a warp.
const HEAD_DIMS: [i64; 3] = [32, 64, 128];

impl KernelShape {
    /// Values of a thread, which moves 16 bytes of bf16 at once.
    pub(crate) const VECTOR: i64 = 8;
    /// Largest width: a block of 1024 threads has a row.
    pub const WIDEST: i64 = 8192;
    /// Largest sum of width and MLP width: a thread has 8 vectors of it in registers.
    pub const LONGEST: i64 = 32_768;

    /// Makes the sizes of blocks of `width`, whose heads are of `head_dim` and whose MLP is of `mlp_width`.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for sizes without kernels: `head_dim` is 32, 64 or 128; `width` is a
    /// multiple of `head_dim` of at most [`Self::WIDEST`]; `mlp_width` is a positive multiple of 8, and both
    /// together are at most [`Self::LONGEST`].
    pub fn new(width: i64, head_dim: i64, mlp_width: i64) -> Result<Self> {
        if !HEAD_DIMS.contains(&head_dim) {
            return Err(Error::invalid(
                "head_dim",
                "32, 64 or 128, for which there are kernels",
                head_dim,
            ));
        }
        if width % head_dim != 0 || !(1..=Self::WIDEST).contains(&width) {
            let expected = format!("a multiple of head_dim, {head_dim}, up to {}", Self::WIDEST);
            return Err(Error::invalid("width", expected, width));
        }
        let longest = Self::LONGEST - width;
        if mlp_width % Self::VECTOR != 0 || !(1..=longest).contains(&mlp_width) {
            let expected = format!("a multiple of {} up to {longest}", Self::VECTOR);
            return Err(Error::invalid("mlp_width", expected, mlp_width));
        }
        Ok(Self {
            width,
            head_dim,
            mlp_width,
        })
    }

    /// Returns the width of a token.
    #[must_use]
    pub fn width(&self) -> i64 {
        self.width
    }

    /// Returns the width of an attention head.
    #[must_use]
    pub fn head_dim(&self) -> i64 {
        self.head_dim
    }

    /// Returns the width of a block's hidden layer.
    #[must_use]
    pub fn mlp_width(&self) -> i64 {
        self.mlp_width
    }

    /// Returns the compiler's options that define the sizes.
    #[must_use]
    pub fn defines(&self) -> [String; 3] {
        [
            format!("-DWIDTH={}", self.width),
            format!("-DHEAD={}", self.head_dim),
            format!("-DMLP={}", self.mlp_width),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_without_kernels_are_refused_with_the_range() {
        for (width, head_dim, mlp_width, words) in [
            (3072, 96, 12_288, "head_dim"),
            (100, 32, 400, "multiple of head_dim, 32"),
            (0, 32, 400, "width"),
            (16_384, 128, 400, "up to 8192"),
            (192, 32, 0, "mlp_width"),
            (192, 32, 770, "multiple of 8"),
            (8192, 128, 32_768, "up to 24576"),
        ] {
            let error = KernelShape::new(width, head_dim, mlp_width).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
        for (width, head_dim, mlp_width) in [(192, 32, 768), (576, 64, 1336), (8192, 128, 24_576)] {
            KernelShape::new(width, head_dim, mlp_width).unwrap();
        }
    }
}
