//! Run-time dispatch to wide registers, once per loop.

/// A loop that runs faster when compiled for wide registers; `run` and every function it calls are
/// `#[inline(always)]`, to be compiled with it.
pub(super) trait Work {
    fn run(self);
}

/// Runs a loop, compiled for AVX2 if the processor has it. Both versions give the same bits: nothing is
/// contracted or reordered.
pub(super) fn run(work: impl Work) {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") {
        #[allow(unsafe_code)]
        // SAFETY: the processor has the feature the function was compiled for.
        return unsafe { with_avx2(work) };
    }
    work.run();
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn with_avx2(work: impl Work) {
    work.run();
}
