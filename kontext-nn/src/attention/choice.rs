//! The choice of the kernel of attention, and its name.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use kontext_core::Error;

/// The kernel that computes a transformer's attention. All but the last give the same result within rounding.
///
/// Its text is the value of the programs' `--attention`: `auto`, `cudnn`, `flash`, `memory-efficient`, `math`,
/// `flash3=FILE` or `flash3-fp8=FILE`.
///
/// # Example
/// ```
/// use kontext_nn::Attention;
/// let choice: Attention = "flash3=/opt/fa3_fwd/_C.abi3.so".parse()?;
/// assert_eq!(choice, Attention::Flash3 { library: "/opt/fa3_fwd/_C.abi3.so".into() });
/// assert_eq!(Attention::MemoryEfficient.to_string(), "memory-efficient");
/// # Ok::<(), kontext_core::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Attention {
    /// libtorch's choice: on CUDA cuDNN from compute capability 9.0 on, else flash for 16 bits and memory-efficient
    /// for 32; on a CPU flash.
    #[default]
    Automatic,
    /// cuDNN's, on CUDA in bf16 or f16.
    CuDnn,
    /// FlashAttention-2 on CUDA in bf16 or f16, and libtorch's own on a CPU.
    Flash,
    /// libtorch's kernel of memory-efficient attention, on CUDA.
    MemoryEfficient,
    /// Matrix products and a softmax, on any device. It takes memory for all scores, which memory plans do not count:
    /// 7 GB in f32 for an edit at 1024x1024 of the published model.
    Math,
    /// FlashAttention-3 from a library of the user, on CUDA of compute capability 8.0 to 9.0 in bf16 or f16.
    Flash3 {
        /// The shared library: `fa3_fwd/_C.abi3.so` of PyPI's `fa3-fwd`, or that of flash-attention's own build. It is
        /// opened once and stays open; a program can open one such library.
        library: PathBuf,
    },
    /// FlashAttention-3 in fp8, on CUDA of compute capability 9.0: queries, keys and values are rounded to e4m3, with
    /// a factor for each head. Lossy: each rounded value is off by up to 1/16 of itself.
    Flash3Fp8 {
        /// The shared library, as for [`Attention::Flash3`].
        library: PathBuf,
    },
}

/// A kernel of attention, as a plan reports it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum AttentionKernel {
    /// cuDNN's.
    CuDnn,
    /// FlashAttention-2, or on a CPU libtorch's own.
    Flash,
    /// This library's own for the bf16 units of AVX-512, in bf16 on a CPU; a part of [`Attention::Automatic`].
    Avx512,
    /// libtorch's memory-efficient attention.
    MemoryEfficient,
    /// Matrix products and a softmax.
    Math,
    /// FlashAttention-3.
    Flash3,
    /// FlashAttention-3 in fp8.
    Flash3Fp8,
}

impl Attention {
    /// Returns the kernel, or `None` if libtorch chooses it.
    #[must_use]
    pub fn kernel(&self) -> Option<AttentionKernel> {
        match self {
            Self::Automatic => None,
            Self::CuDnn => Some(AttentionKernel::CuDnn),
            Self::Flash => Some(AttentionKernel::Flash),
            Self::MemoryEfficient => Some(AttentionKernel::MemoryEfficient),
            Self::Math => Some(AttentionKernel::Math),
            Self::Flash3 { .. } => Some(AttentionKernel::Flash3),
            Self::Flash3Fp8 { .. } => Some(AttentionKernel::Flash3Fp8),
        }
    }
}

impl fmt::Display for AttentionKernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::CuDnn => "cudnn",
            Self::Flash => "flash",
            Self::Avx512 => "avx512",
            Self::MemoryEfficient => "memory-efficient",
            Self::Math => "math",
            Self::Flash3 => "flash3",
            Self::Flash3Fp8 => "flash3-fp8",
        })
    }
}

impl fmt::Display for Attention {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self, self.kernel()) {
            (Self::Flash3 { library } | Self::Flash3Fp8 { library }, Some(kernel)) => {
                write!(f, "{kernel}={}", library.display())
            }
            (_, Some(kernel)) => kernel.fmt(f),
            (_, None) => f.write_str("auto"),
        }
    }
}

impl FromStr for Attention {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let library = |path: &str| (!path.is_empty()).then(|| PathBuf::from(path));
        let choice = match text.split_once('=') {
            Some(("flash3", path)) => library(path).map(|library| Self::Flash3 { library }),
            Some(("flash3-fp8", path)) => library(path).map(|library| Self::Flash3Fp8 { library }),
            Some(_) => None,
            None => [
                Self::Automatic,
                Self::CuDnn,
                Self::Flash,
                Self::MemoryEfficient,
                Self::Math,
            ]
            .into_iter()
            .find(|choice| choice.to_string() == text),
        };
        choice.ok_or_else(|| {
            let all = "auto, cudnn, flash, memory-efficient, math, flash3=FILE or flash3-fp8=FILE";
            Error::invalid("attention", all, text)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_choice_is_read_from_its_text() {
        for text in [
            "auto",
            "cudnn",
            "flash",
            "memory-efficient",
            "math",
            "flash3=a b/c=d.so",
            "flash3-fp8=x.so",
        ] {
            assert_eq!(text.parse::<Attention>().unwrap().to_string(), text);
        }
        for text in ["", "Flash", "flash3", "flash3=", "math=x", "fa3"] {
            let error = text.parse::<Attention>().unwrap_err().to_string();
            assert!(error.contains("flash3=FILE"), "{error}");
        }
    }
}
