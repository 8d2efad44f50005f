//! Flow-matching sampler, schedules and latent geometry of FLUX.1 Kontext.
