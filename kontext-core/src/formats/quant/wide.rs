//! Choosing the wide registers of the processor, once for a loop.

/// A loop that runs faster when it is compiled for wide registers; `run` and all that it calls are
/// `#[inline(always)]`, so that they are compiled along.
pub(super) trait Work {
    fn run(self);
}

/// Runs a loop, compiled for AVX2 where the processor has it. Both give the same bits: nothing is contracted or
/// reordered.
pub(super) fn run(work: impl Work) {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") {
        #[allow(unsafe_code)]
        // SAFETY: the processor has what the function was compiled for.
        return unsafe { with_avx2(work) };
    }
    work.run();
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn with_avx2(work: impl Work) {
    work.run();
}
