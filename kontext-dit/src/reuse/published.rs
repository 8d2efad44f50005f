//! Published measurements of FLUX.1 models, from which the modes decide.
//!
//! Those of FLUX.1 Kontext are of edits; those of FLUX.1-dev serve runs without references, for which none of Kontext
//! are published.

/// Ratios of the norms of the blocks' change, each to that of the step before, of FLUX.1 Kontext at 28 steps.
///
/// Source: Zehong-Ma/MagCache@df81cb1 `MagCache4FLUX_Kontext/magcache_flux_kontext.py`.
pub(super) const KONTEXT_RATIOS: [f64; 28] = [
    1.0, 1.19531, 1.07812, 1.02344, 1.03125, 1.00781, 1.02344, 1.01562, 1.01562, 1.0, 1.01562, 1.0, 1.00781, 1.0,
    1.00781, 1.0, 1.00781, 0.99609, 1.01562, 0.99219, 1.0, 0.99219, 0.98438, 0.99609, 0.96484, 0.96094, 0.9375,
    0.93359,
];

/// The same of FLUX.1-dev.
///
/// Source: huggingface/diffusers 0.38 `hooks/mag_cache.py`, `FLUX_MAG_RATIOS`.
pub(super) const FLUX_RATIOS: [f64; 28] = [
    1.0, 1.21094, 1.11719, 1.07812, 1.0625, 1.03906, 1.03125, 1.03906, 1.02344, 1.03125, 1.02344, 0.98047, 1.01562,
    1.00781, 1.0, 1.00781, 1.0, 1.00781, 1.0, 1.0, 0.99609, 0.99609, 0.98047, 0.98828, 0.96484, 0.95703, 0.93359,
    0.89062,
];

/// Step of 28 that MagCache always computes with Kontext's ratios.
///
/// Source: as of [`KONTEXT_RATIOS`].
pub(super) const KONTEXT_COMPUTED: usize = 11;

/// Polynomial from the change of the first block's input to that of the model's output, highest power first, of FLUX.1
/// Kontext; its absolute value is used.
///
/// Source: welltop-cn/ComfyUI-TeaCache@91dff8e `nodes.py`.
pub(super) const KONTEXT_POLYNOMIAL: [f64; 5] = [-1046.55119, 312.563399, -16.9500694, 0.410995971, 0.0374537863];

/// The same of FLUX.1-dev.
///
/// Source: ali-vilab/TeaCache@7c10efc `TeaCache4FLUX/teacache_flux.py`.
pub(super) const FLUX_POLYNOMIAL: [f64; 5] = [498.651651, -283.781631, 55.8554382, -3.82021401, 0.264230861];
