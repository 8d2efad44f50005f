//! A transformer's step (in bf16, and with products in fp8) and an autoencoder by own kernels, against those without and
//! against f32.

use kontext::{Conditioning, Device, Dit, DitConfig, Kind, Tensor, Tokens, VaeConfig, Weights};
use kontext_core::check::relative_l2;
use kontext_dit::{Run, RunInput};
use kontext_nn::without_fp8;
use kontext_sampler::ids::{Origin, grid_ids};
use kontext_sampler::{Grid, Size};
use kontext_vae::AutoencoderKl;

use super::distance::Bounds;
use super::world::World;
use crate::row::Outcome;
use crate::suite::Case;
use crate::{device, own, quantised};

/// Largest error of a step in bf16 without kernels against f32.
const PLAIN: f64 = 2e-2;
/// Largest error by kernels, which round less, in errors without them.
const FUSED: f64 = 1.05;
/// Likewise of an autoencoder. Of the few hundred latents on a CPU, where both round as often, errors differ by chance: of
/// 24 draws by up to 15%.
const FUSED_AUTOENCODER: f64 = 1.25;
/// The first two of products in fp8, whose roundings are larger and depend on the last bits.
const PLAIN_FP8: f64 = 6e-2;
const FUSED_FP8: f64 = 1.1;

/// A model, and the inputs of its step.
struct Model {
    config: DitConfig,
    /// Set if the blocks' weights and products are in fp8.
    fp8: bool,
    text: i64,
    /// Side of the image, and of the reference.
    pixels: u32,
}

pub(super) fn cases(world: &World) -> Vec<Case<'_>> {
    let on = world.device;
    // The sizes of the repository's small model, and for a GPU those of FLUX.1.
    let small = DitConfig {
        heads: 6,
        head_dim: 32,
        axes_dim: [8, 12, 12],
        mlp_width: 768,
        double_blocks: 2,
        single_blocks: 2,
        context_dim: 64,
        pooled_dim: 64,
        ..DitConfig::kontext_dev()
    };
    let flux = DitConfig {
        double_blocks: 2,
        single_blocks: 4,
        ..DitConfig::kontext_dev()
    };
    // Quantising takes a second for each of them.
    let fewer = DitConfig {
        double_blocks: 1,
        single_blocks: 2,
        ..flux.clone()
    };
    let all = [
        ("small model", (small.clone(), false, 16, 128)),
        ("flux with 2 and 4 blocks", (flux, false, 512, 512)),
        ("small model, fp8", (small, true, 16, 128)),
        ("flux with 1 and 2 blocks, fp8", (fewer, true, 512, 512)),
    ];
    let case = |(name, (config, fp8, text, pixels)): (&str, (DitConfig, bool, i64, u32))| {
        Case::new(format!("fused step/{name}"), move || {
            if !on.is_cuda() && config.width() > 1024 {
                return Ok(Outcome::skipped("a model of full width is for a GPU"));
            }
            let config = config.clone();
            Model {
                config,
                fp8,
                text,
                pixels,
            }
            .compare(on)
        })
    };
    let mut cases: Vec<_> = all.map(case).into();
    cases.push(Case::new("fused autoencoder", move || autoencoder(on)));
    cases
}

/// Encodes and decodes by kernels and without: on a GPU at the sizes of FLUX.1.
fn autoencoder(on: Device) -> anyhow::Result<Outcome> {
    let (block_out_channels, side) = if on.is_cuda() {
        ([128, 256, 512, 512], 512)
    } else {
        ([32, 32, 64, 64], 32)
    };
    let config = VaeConfig {
        block_out_channels,
        ..VaeConfig::flux()
    };
    let mut vae = AutoencoderKl::new(&Weights::synthetic(3).device(on), &config)?;
    let coded = |vae: &AutoencoderKl, kind: Kind| -> anyhow::Result<[Tensor; 2]> {
        // Rounded, so that both dtypes start from the same values.
        let draw = |size: &[i64], seed| -> anyhow::Result<Tensor> {
            let x = kontext_core::noise::randn(size, seed, Kind::Float, on)?.f_tanh()?;
            Ok(x.f_to_kind(Kind::BFloat16)?.f_to_kind(kind)?)
        };
        let encoded = vae.encode_latents(&draw(&[1, 3, side, side], 1)?)?;
        let decoded = vae.decode(&draw(&[1, config.latent_channels, side / 8, side / 8], 2)?)?;
        Ok([encoded.f_to_kind(Kind::Float)?, decoded.f_to_kind(Kind::Float)?])
    };
    let (exact, plain) = (coded(&vae, Kind::Float)?, coded(&vae, Kind::BFloat16)?);
    // Of any transformer.
    let shape = own::shape_of(&DitConfig::kontext_dev())?;
    vae.set_kernels(Some(own::kernels(&shape, on)?));
    let fused = coded(&vae, Kind::BFloat16)?;
    let mut outcome = Outcome::default();
    for (index, name) in ["encoded", "decoded"].into_iter().enumerate() {
        let plain_error = relative_l2(&plain[index], &exact[index])?;
        let fused_error = relative_l2(&fused[index], &exact[index])?;
        outcome.at_most(
            format!("{name}, relative L2 without kernels"),
            plain_error,
            Bounds::BF16.encoded,
        );
        outcome.at_most(
            format!("{name}, relative L2"),
            fused_error,
            FUSED_AUTOENCODER * plain_error,
        );
        outcome.holds(!fused[index].equal(&plain[index]), || {
            format!("{name}: the kernels did not run")
        });
    }
    device::synchronize(on)?;
    Ok(outcome)
}

impl Model {
    fn compare(&self, on: Device) -> anyhow::Result<Outcome> {
        let kernels = own::kernels(&own::shape_of(&self.config)?, on)?;
        if self.fp8 && !kernels.has_fp8() {
            return Ok(Outcome::skipped("fp8 needs compute capability 8.9 or newer"));
        }
        let weights = if self.fp8 {
            quantised::weights(&self.config)?
        } else {
            Weights::synthetic(3).kind(Kind::BFloat16)
        };
        let mut dit = Dit::new(&weights.device(on), &self.config, |_| ())?;
        // On a GPU products in f32 unpack the weights in any case.
        let exact = without_fp8(|| self.velocity(&dit, on, Kind::Float))?;
        let plain = self.velocity(&dit, on, Kind::BFloat16)?;
        dit.set_kernels(Some(kernels));
        let fused = self.velocity(&dit, on, Kind::BFloat16)?;
        let [fused_error, plain_error] = [&fused, &plain].map(|velocity| relative_l2(velocity, &exact));
        let (fused_error, plain_error) = (fused_error?, plain_error?);
        let (most, times) = if self.fp8 {
            (PLAIN_FP8, FUSED_FP8)
        } else {
            (PLAIN, FUSED)
        };
        let mut outcome = Outcome::default();
        outcome.at_most("relative L2 without kernels", plain_error, most);
        outcome.at_most("relative L2", fused_error, times * plain_error);
        outcome.holds(!fused.equal(&plain), || "the kernels did not run".to_owned());
        device::synchronize(on)?;
        Ok(outcome)
    }

    fn velocity(&self, dit: &Dit, on: Device, kind: Kind) -> anyhow::Result<Tensor> {
        let grid: Grid = Size::new(self.pixels, self.pixels).grid()?;
        let features = [1, grid.tokens(), self.config.in_channels];
        let draw = |size: &[i64], seed: u64| -> anyhow::Result<Tensor> {
            // Rounded, so that both dtypes start from the same values.
            let x = kontext_core::noise::randn(size, seed, Kind::Float, on)?;
            Ok(x.f_to_kind(Kind::BFloat16)?.f_to_kind(kind)?)
        };
        let ids = |t| grid_ids(grid, Origin { t, y: 0, x: 0 });
        let context = Tokens::new(draw(&features, 3)?, ids(1)?)?;
        let run: Run = dit.prepare(&RunInput {
            conditioning: &Conditioning {
                prompt_embeds: draw(&[1, self.text, self.config.context_dim], 1)?,
                pooled: draw(&[1, self.config.pooled_dim], 2)?,
            },
            target_ids: &ids(0)?,
            context: Some(&context),
            times: &[600.0],
            guidance: Some(2500.0),
        })?;
        Ok(dit.forward(&run, 0, &draw(&features, 4)?)?.f_to_kind(Kind::Float)?)
    }
}
