//! Published and fitted maps for the latents of FLUX.1.

use super::LatentMap;

/// Source: comfyanonymous/ComfyUI `comfy/latent_formats.py`, `Flux.latent_rgb_factors` and `latent_rgb_factors_bias`.
const COMFY_UI: [[f32; 3]; 16] = [
    [-0.0346, 0.0244, 0.0681],
    [0.0034, 0.0210, 0.0687],
    [0.0275, -0.0668, -0.0433],
    [-0.0174, 0.0160, 0.0617],
    [0.0859, 0.0721, 0.0329],
    [0.0004, 0.0383, 0.0115],
    [0.0405, 0.0861, 0.0915],
    [-0.0236, -0.0185, -0.0259],
    [-0.0245, 0.0250, 0.1180],
    [0.1008, 0.0755, -0.0421],
    [-0.0515, 0.0201, 0.0011],
    [0.0428, -0.0012, -0.0036],
    [0.0817, 0.0765, 0.0749],
    [-0.1264, -0.0522, -0.1103],
    [-0.0280, -0.0881, -0.0499],
    [-0.1262, -0.0982, -0.0778],
];
const COMFY_UI_BIAS: [f32; 3] = [-0.0329, -0.0718, -0.0851];

/// Source: leejet/stable-diffusion.cpp `src/runtime/latent-preview.h`, `flux_latent_rgb_proj` and `flux_latent_rgb_bias`.
const STABLE_DIFFUSION_CPP: [[f32; 3]; 16] = [
    [-0.041168, 0.019917, 0.097253],
    [0.028096, 0.026730, 0.129576],
    [0.065618, -0.067950, -0.014651],
    [-0.012998, -0.014762, 0.081251],
    [0.078567, 0.059296, -0.024687],
    [-0.015987, -0.003697, 0.005012],
    [0.033605, 0.138999, 0.068517],
    [-0.024450, -0.063567, -0.030101],
    [-0.040194, -0.016710, 0.127185],
    [0.112681, 0.088764, -0.041940],
    [-0.023498, 0.093664, 0.025543],
    [0.082899, 0.048320, 0.007491],
    [0.075712, 0.074139, 0.081965],
    [-0.143501, 0.018263, -0.136138],
    [-0.025767, -0.082035, -0.040023],
    [-0.111849, -0.055589, -0.032361],
];
const STABLE_DIFFUSION_CPP_BIAS: [f32; 3] = [0.024600, -0.006937, -0.008089];

/// The least squares over the 12 photos of Kodak with odd numbers, encoded by TAEF1: `examples/previews.rs` prints them.
const FITTED: [[f32; 3]; 16] = [
    [-0.0270, 0.0441, 0.0928],
    [0.0340, 0.0483, 0.0920],
    [0.0506, -0.0520, -0.0344],
    [-0.0184, 0.0191, 0.0617],
    [0.0725, 0.0596, 0.0243],
    [-0.0054, 0.0310, 0.0314],
    [0.0558, 0.0890, 0.0805],
    [-0.0417, -0.0446, -0.0610],
    [-0.0398, -0.0043, 0.1018],
    [0.1151, 0.0873, -0.0263],
    [-0.0056, 0.0705, 0.0348],
    [0.0934, 0.0396, 0.0394],
    [0.0669, 0.0592, 0.0575],
    [-0.1356, -0.0320, -0.1179],
    [-0.0209, -0.0792, -0.0413],
    [-0.1137, -0.0854, -0.0582],
];
const FITTED_BIAS: [f32; 3] = [-0.0109, -0.0903, -0.1190];

impl LatentMap {
    /// Returns ComfyUI's map for the latents of FLUX.1.
    #[must_use]
    pub fn comfy_ui() -> Self {
        Self {
            weights: COMFY_UI.to_vec(),
            bias: COMFY_UI_BIAS,
        }
    }

    /// Returns stable-diffusion.cpp's map for the latents of FLUX.1.
    #[must_use]
    pub fn stable_diffusion_cpp() -> Self {
        Self {
            weights: STABLE_DIFFUSION_CPP.to_vec(),
            bias: STABLE_DIFFUSION_CPP_BIAS,
        }
    }

    /// Returns this library's map for the latents of FLUX.1, fitted to twelve photos as TAEF1 encodes them.
    #[must_use]
    pub fn flux() -> Self {
        Self {
            weights: FITTED.to_vec(),
            bias: FITTED_BIAS,
        }
    }
}
