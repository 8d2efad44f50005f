//! A step of a random model on a CPU, whose own kernels do nothing.

use std::sync::Arc;

use kontext::{Conditioning, Device, Dit, DitConfig, Kind, Tensor, Tokens, Weights};
use kontext_dit::RunInput;
use kontext_kernels::{Call, Counter, KernelShape, Kernels, Launch};

use super::Way;
use crate::quantised;

/// A target of launches that does nothing.
#[derive(Debug)]
struct Nowhere;

impl Launch for Nowhere {
    fn device(&self) -> Device {
        Device::Cpu
    }

    fn has_fp8(&self) -> bool {
        true
    }

    fn launch(&self, _: Call<'_>) -> kontext::Result<()> {
        Ok(())
    }
}

/// Returns a model's random weights in bf16, or with its blocks in fp8.
pub(super) fn weights(config: &DitConfig, way: Way) -> anyhow::Result<Weights> {
    if way.fp8 {
        return quantised::weights(config);
    }
    quantised::plain(config)
}

/// A step in bf16.
pub(super) struct Step {
    dit: Dit,
    run: kontext_dit::Run,
    target: Tensor,
}

impl Step {
    pub(super) fn new(
        config: &DitConfig,
        [text, target, reference]: [i64; 3],
        way: Way,
    ) -> anyhow::Result<(Self, Arc<Counter>)> {
        let counter = Arc::new(Counter::new(Arc::new(Nowhere)));
        let mut dit = Dit::new(&weights(config, way)?, config, |_| ())?;
        if way.kernels {
            let shape = KernelShape::new(config.width(), config.head_dim, config.mlp_width)?;
            dit.set_kernels(Some(Kernels::launched_by(Arc::<Counter>::clone(&counter), &shape)));
        }
        let zeros = |size: &[i64]| Tensor::f_zeros(size, (Kind::BFloat16, Device::Cpu));
        let ids = |count: i64| Tensor::f_zeros([count, 3], (Kind::Float, Device::Cpu));
        let context = Tokens::new(zeros(&[1, reference, config.in_channels])?, ids(reference)?)?;
        let run = dit.prepare(&RunInput {
            conditioning: &Conditioning {
                prompt_embeds: zeros(&[1, text, config.context_dim])?,
                pooled: zeros(&[1, config.pooled_dim])?,
            },
            target_ids: &ids(target)?,
            context: Some(&context),
            times: &[600.0],
            guidance: Some(2500.0),
        })?;
        let target = zeros(&[1, target, config.in_channels])?;
        Ok((Self { dit, run, target }, counter))
    }

    pub(super) fn forward(&self) -> anyhow::Result<()> {
        drop(self.dit.forward(&self.run, 0, &self.target)?);
        Ok(())
    }
}
