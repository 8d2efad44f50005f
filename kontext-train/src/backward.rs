//! A forward and backward pass, with or without activation checkpointing.

use std::mem;

use kontext_core::{Kind, Result, Tensor};
use kontext_dit::{Dit, Run};

/// Storage of activations between the forward and the backward pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activations {
    /// All activations are kept: fast.
    Kept,
    /// Activation checkpointing: only the inputs of blocks are kept, and each block is recomputed in the
    /// backward pass. A third more work, and memory for one block instead of all.
    Recomputed,
}

/// Adds the gradient of `loss(velocity)`, times `scale`, to the gradients of the trained tensors. Returns the
/// unscaled loss.
///
/// `run` is of one step; `target` [B, L, C] is the noisy image.
///
/// # Errors
/// Those of the model and of `loss`.
pub fn backward(
    dit: &Dit,
    run: &Run,
    target: &Tensor,
    activations: Activations,
    scale: f64,
    loss: impl Fn(&Tensor) -> Result<Tensor>,
) -> Result<f64> {
    match activations {
        Activations::Kept => {
            let value = loss(&dit.forward(run, 0, target)?)?;
            value.f_mul_scalar(scale)?.f_backward()?;
            Ok(value.f_double_value(&[])?)
        }
        Activations::Recomputed => recomputed(dit, run, target, scale, loss),
    }
}

fn recomputed(
    dit: &Dit,
    run: &Run,
    target: &Tensor,
    scale: f64,
    loss: impl Fn(&Tensor) -> Result<Tensor>,
) -> Result<f64> {
    let pieces = dit.pieces(run, 0)?;
    let entrance = dit.enter(run, target)?;
    // Forward: the input of each piece is kept, detached from the graph.
    let mut inputs = Vec::new();
    let mut state = entrance.try_map(detached)?;
    for piece in &pieces {
        let next = tch::no_grad(|| piece.forward(&state, &piece.modulation()))?;
        inputs.push(mem::replace(&mut state, next.try_map(detached)?));
    }
    // The loss, and its gradient with respect to the velocity.
    let end = state.try_map(leaf)?;
    let value = loss(end.velocity()?)?;
    value.f_mul_scalar(scale)?.f_backward()?;
    let mut gradients = gradients_of(end.tensors())?;
    // Backward: each piece is run again from its input. Gradients reach the trained tensors within it, its
    // inputs, and its modulation; those of the modulation continue into the run below.
    let mut roots = Vec::new();
    for (piece, input) in pieces.iter().zip(&inputs).rev() {
        let modulation = piece.modulation();
        let input = input.try_map(leaf)?;
        let values = modulation.iter().map(leaf).collect::<Result<Vec<_>>>()?;
        backward_from(piece.forward(&input, &values)?.tensors(), &gradients)?;
        gradients = gradients_of(input.tensors())?;
        roots.extend(modulation.into_iter().zip(gradients_of(&values)?));
    }
    roots.extend(entrance.tensors().into_iter().map(Tensor::shallow_clone).zip(gradients));
    let (values, gradients): (Vec<_>, Vec<_>) = roots.into_iter().filter(|(t, _)| t.requires_grad()).unzip();
    backward_from(&values, &gradients)?;
    Ok(value.f_double_value(&[])?)
}

/// Runs a backward pass from `outputs`, given their gradients: that of the sum of the products.
pub(crate) fn backward_from<'a>(outputs: impl IntoIterator<Item = &'a Tensor>, gradients: &[Tensor]) -> Result<()> {
    let mut sum: Option<Tensor> = None;
    for (output, gradient) in outputs.into_iter().zip(gradients).filter(|(o, _)| o.requires_grad()) {
        let product = output.f_mul(gradient)?.f_sum(Kind::Float)?;
        sum = Some(match sum {
            Some(sum) => sum.f_add(&product)?,
            None => product,
        });
    }
    if let Some(sum) = sum {
        sum.f_backward()?;
    }
    Ok(())
}

fn detached(tensor: &Tensor) -> Result<Tensor> {
    Ok(tensor.f_detach()?)
}

/// Returns the same values as a leaf of another graph.
pub(crate) fn leaf(tensor: &Tensor) -> Result<Tensor> {
    Ok(tensor.f_detach()?.f_set_requires_grad(true)?)
}

/// Returns the gradients of leaves after a backward pass; zero for leaves not reached.
pub(crate) fn gradients_of<'a>(leaves: impl IntoIterator<Item = &'a Tensor>) -> Result<Vec<Tensor>> {
    let gradient = |leaf: &Tensor| -> Result<Tensor> {
        let gradient = leaf.f_grad()?;
        Ok(if gradient.defined() {
            gradient
        } else {
            leaf.f_detach()?.f_zeros_like()?
        })
    };
    leaves.into_iter().map(gradient).collect()
}

#[cfg(test)]
mod tests {
    use kontext_core::{Conditioning, Device, Tokens, check, noise};
    use kontext_dit::{DitConfig, RunInput};
    use kontext_nn::Weights;
    use kontext_sampler::Grid;
    use kontext_sampler::ids::{Origin, grid_ids};

    use super::*;
    use crate::optim::Params;

    fn config(double_blocks: i64, single_blocks: i64) -> DitConfig {
        DitConfig {
            in_channels: 8,
            out_channels: 8,
            heads: 2,
            head_dim: 8,
            axes_dim: [4, 2, 2],
            mlp_width: 32,
            double_blocks,
            single_blocks,
            context_dim: 6,
            pooled_dim: 5,
            guidance_embed: true,
        }
    }

    /// Returns the loss and the flat gradient of a batch of two items at different times.
    fn gradient(config: &DitConfig, activations: Activations) -> (f64, Tensor) {
        let blank = Weights::blank();
        Dit::new(&blank, config, |_| ()).unwrap();
        let weights = Weights::synthetic(3);
        let tensors: Vec<_> = blank
            .shapes()
            .into_iter()
            .map(|(n, s)| (n.clone(), weights.tensor(&n, &s).unwrap()))
            .collect();
        let params = Params::new(&tensors, Device::Cpu).unwrap();
        let dit = Dit::new(&params.weights(), config, |_| ()).unwrap();
        let draw = |shape: &[i64], seed| noise::randn(shape, seed, Kind::Float, Device::Cpu).unwrap();
        let grid = Grid { rows: 2, cols: 2 };
        let ids = |t| grid_ids(grid, Origin { t, y: 0, x: 0 }).unwrap();
        let conditioning = Conditioning {
            prompt_embeds: draw(&[2, 3, 6], 1),
            pooled: draw(&[2, 5], 2),
        };
        let context = Tokens::new(draw(&[2, 4, 8], 3), ids(1)).unwrap();
        let input = RunInput {
            conditioning: &conditioning,
            target_ids: &ids(0),
            context: Some(&context),
            times: &[300.0, 800.0],
            guidance: Some(1000.0),
        };
        let run = dit.prepare_items(&input).unwrap();
        let (target, goal) = (draw(&[2, 4, 8], 4), draw(&[2, 4, 8], 5));
        let loss = |v: &Tensor| Ok(v.f_sub(&goal)?.f_square()?.f_mean(Kind::Float)?);
        let loss = backward(&dit, &run, &target, activations, 1.0, loss).unwrap();
        (loss, params.gradient().unwrap())
    }

    #[test]
    fn recomputed_and_kept_activations_give_the_same_gradient() {
        // With blocks of a single kind as well: the state changes its form between kinds.
        for (double, single) in [(2, 2), (0, 2), (2, 0)] {
            let (kept_loss, kept) = gradient(&config(double, single), Activations::Kept);
            let (loss, again) = gradient(&config(double, single), Activations::Recomputed);
            assert!((kept_loss - loss).abs() < 1e-6, "{kept_loss} {loss}");
            let distance = check::relative_l2(&again, &kept).unwrap();
            assert!(distance < 1e-6, "{double} double, {single} single blocks: {distance}");
            assert!(kept.abs().min().double_value(&[]) >= 0.0 && kept.norm().double_value(&[]) > 1e-3);
        }
    }
}
