//! The teacher's features: the target's tokens after its blocks.

use kontext_core::{Error, Kind, Result, Tensor};
use kontext_dit::{Dit, Run, State};

use crate::backward::{backward_from, gradients_of, leaf};

/// Term of the layer norm's root, as in the transformer's blocks.
const NORM_EPS: f64 = 1e-6;

/// Returns the target's tokens [B, L, D] in f32 after each of these blocks, each token normalised. The blocks
/// are rising; those after the last one are not computed.
pub(crate) fn features(dit: &Dit, run: &Run, target: &Tensor, text: i64, blocks: &[usize]) -> Result<Vec<Tensor>> {
    let length = target.size()[1];
    let mut state = dit.enter(run, target)?;
    let last = blocks.last().copied().unwrap_or_default();
    let mut features = Vec::with_capacity(blocks.len());
    for (index, piece) in dit.pieces(run, 0)?.into_iter().enumerate().take(last + 1) {
        state = piece.forward(&state, &piece.modulation())?;
        if blocks.contains(&index) {
            features.push(normalised(&target_tokens(&state, text, length)?)?);
        }
    }
    Ok(features)
}

/// As [`features`], without a graph; also returns the inputs of the blocks, from which [`gradient`] runs them
/// again.
pub(crate) fn checkpointed(
    dit: &Dit,
    run: &Run,
    target: &Tensor,
    text: i64,
    blocks: &[usize],
) -> Result<(Vec<Tensor>, Vec<State>)> {
    let length = target.size()[1];
    let last = blocks.last().copied().unwrap_or_default();
    let (mut features, mut inputs) = (Vec::with_capacity(blocks.len()), Vec::with_capacity(last + 1));
    let mut state = dit.enter(run, target)?;
    for (index, piece) in dit.pieces(run, 0)?.into_iter().enumerate().take(last + 1) {
        let next = piece.forward(&state, &piece.modulation())?;
        if blocks.contains(&index) {
            features.push(normalised(&target_tokens(&next, text, length)?)?);
        }
        inputs.push(std::mem::replace(&mut state, next));
    }
    Ok((features, inputs))
}

/// Returns the gradient [B, L, C] with respect to the target, given those with respect to the features of a
/// [`checkpointed`] pass: one block's activations are in memory at a time.
pub(crate) fn gradient(
    dit: &Dit,
    run: &Run,
    target: &Tensor,
    text: i64,
    blocks: &[usize],
    inputs: &[State],
    of_features: &[Tensor],
) -> Result<Tensor> {
    let length = target.size()[1];
    let mut of_features = blocks.iter().zip(of_features).rev().peekable();
    let mut of_state: Vec<Tensor> = Vec::new();
    for (index, (piece, input)) in dit.pieces(run, 0)?.iter().zip(inputs).enumerate().rev() {
        let input = input.try_map(leaf)?;
        let output = piece.forward(&input, &piece.modulation())?;
        let mut gradients = std::mem::take(&mut of_state);
        let mut values: Vec<Tensor> = Vec::new();
        if !gradients.is_empty() {
            values.extend(output.tensors().into_iter().map(Tensor::shallow_clone));
        }
        if let Some((_, found)) = of_features.next_if(|(block, _)| **block == index) {
            values.push(normalised(&target_tokens(&output, text, length)?)?);
            gradients.push(found.shallow_clone());
        }
        backward_from(&values, &gradients)?;
        of_state = gradients_of(input.tensors())?;
    }
    let target = leaf(target)?;
    backward_from(dit.enter(run, &target)?.tensors(), &of_state)?;
    gradients_of([&target])?
        .pop()
        .ok_or_else(|| Error::bug("no gradient of a target"))
}

fn target_tokens(state: &State, text: i64, length: i64) -> Result<Tensor> {
    Ok(match state {
        State::Streams { img, .. } => img.f_narrow(1, 0, length)?,
        State::Joined(joined) => joined.f_narrow(1, text, length)?,
        State::Target(target) => target.shallow_clone(),
        State::Velocity(_) => return Err(Error::bug("features of the velocity")),
    })
}

fn normalised(tokens: &Tensor) -> Result<Tensor> {
    let tokens = tokens.f_to_kind(Kind::Float)?;
    let width = tokens.size()[2];
    Ok(tokens.f_layer_norm([width], None::<&Tensor>, None::<&Tensor>, NORM_EPS, false)?)
}
