//! The kernels' text.

/// Returns the text of all kernels, as NVRTC compiles it with the options of [`KernelShape::defines`].
///
/// [`KernelShape::defines`]: crate::KernelShape::defines
///
/// # Example
/// ```
/// assert!(kontext_kernels::source().contains("qk_norm_rope("));
/// ```
#[must_use]
pub fn source() -> &'static str {
    // A compiler's message names the file and its line.
    concat!(
        "#line 1 \"common.cuh\"\n",
        include_str!("../cuda/common.cuh"),
        "#line 1 \"qk_norm_rope.cu\"\n",
        include_str!("../cuda/qk_norm_rope.cu"),
        "#line 1 \"residual_norm.cu\"\n",
        include_str!("../cuda/residual_norm.cu"),
        "#line 1 \"gelu_concat.cu\"\n",
        include_str!("../cuda/gelu_concat.cu"),
        "#line 1 \"group_norm.cu\"\n",
        include_str!("../cuda/group_norm.cu"),
    )
}
