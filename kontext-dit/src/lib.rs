//! The multimodal diffusion transformer of FLUX.1 Kontext, on libtorch.
