//! The transformer split into pieces with few activations between them.

use kontext_core::{During, Error, Result, Stage, Tensor};
use kontext_nn::Linear;

use crate::double::{DoubleBlock, DoubleTable};
use crate::modulation::{Modulation, Table, modulate};
use crate::single::SingleBlock;
use crate::state::State;
use crate::step::Step;

/// One piece of a step: a block, or the last layer. Created by [`crate::Dit::pieces`].
///
/// A piece depends only on the arguments of [`Piece::forward`] (and the positions), so it can be recomputed,
/// as activation checkpointing in training requires.
#[derive(Debug)]
pub struct Piece<'a> {
    pub(crate) part: Part<'a>,
    pub(crate) step: Step<'a>,
    /// Number of text tokens.
    pub(crate) text: i64,
    /// Number of target tokens.
    pub(crate) target: i64,
}

#[derive(Debug)]
pub(crate) enum Part<'a> {
    Double(&'a DoubleBlock, &'a DoubleTable),
    Single {
        block: &'a SingleBlock,
        table: &'a Table,
        last: bool,
    },
    Last {
        linear: &'a Linear,
        table: &'a Table,
    },
}

impl Part<'_> {
    /// Returns the modulated norm of image tokens that the block reads first.
    pub(crate) fn modulated_image(&self, x: &Tensor, step: i64) -> Result<Tensor> {
        match self {
            Part::Double(_, table) => table.modulate_image(x, step),
            Part::Single { table, .. } => {
                let [modulation]: [Modulation; 1] = table.step(step)?;
                modulation.modulate(x)
            }
            Part::Last { table, .. } => {
                let (shift, scale) = table.last(step)?;
                modulate(x, &shift, &scale)
            }
        }
    }
}

impl Piece<'_> {
    /// Returns the target's tokens [N, L, D] in a state before the velocity.
    pub(crate) fn target_of(&self, state: &State) -> Result<Tensor> {
        Ok(match state {
            State::Streams { img, .. } => img.f_narrow(1, 0, self.target)?,
            State::Joined(joined) => joined.f_narrow(1, self.text, self.target)?,
            State::Target(target) => target.shallow_clone(),
            State::Velocity(_) => return Err(state.unexpected("a state before the velocity")),
        })
    }

    /// Returns the target's tokens as [`Piece::target_of`] does, to be kept: without the memory of the
    /// others.
    pub(crate) fn kept_target_of(&self, state: &State) -> Result<Tensor> {
        let target = self.target_of(state)?;
        let of_all = match state {
            State::Streams { img, .. } => img.size() == target.size(),
            State::Joined(_) => false,
            State::Target(_) | State::Velocity(_) => true,
        };
        if of_all {
            return Ok(target);
        }
        let mut copy = target.f_empty_like()?;
        copy.f_copy_(&target)?;
        Ok(copy)
    }

    /// Returns the run's modulation for this piece: shifts, scales and gates, in the form that the piece uses.
    #[must_use]
    pub fn modulation(&self) -> Vec<Tensor> {
        match &self.part {
            Part::Double(_, table) => table.values(),
            Part::Single { table, .. } | Part::Last { table, .. } => vec![table.values()],
        }
    }

    /// Runs the piece on the state returned by the previous piece (or by [`crate::Dit::enter`]) and its
    /// modulation, [`Piece::modulation`] or tensors of the same shapes.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for the state or the modulation of another piece, [`Error::Torch`] if
    /// libtorch fails.
    pub fn forward(&self, state: &State, modulation: &[Tensor]) -> Result<State> {
        self.compute(state, modulation).during(Stage::Forward)
    }

    fn compute(&self, state: &State, modulation: &[Tensor]) -> Result<State> {
        match (&self.part, modulation) {
            (Part::Double(block, table), [img, txt]) => {
                let table = table.with(img, txt);
                let State::Streams { txt, img } = state else {
                    return Err(state.unexpected("separate streams"));
                };
                let (txt, img) = block.forward(txt, img, &table, self.step)?;
                Ok(State::Streams { txt, img })
            }
            (Part::Single { block, table, last }, [values]) => {
                let table = table.with(values);
                let joined = match state {
                    State::Streams { txt, img } => Tensor::f_cat(&[txt, img], 1)?, // [N, T + L + R, D]
                    State::Joined(joined) => joined.shallow_clone(),
                    other => return Err(other.unexpected("separate streams or a joined sequence")),
                };
                if *last {
                    let target = block.forward_target(&joined, &table, self.step, self.text, self.target)?;
                    return Ok(State::Target(target));
                }
                Ok(State::Joined(block.forward(&joined, &table, self.step)?))
            }
            (Part::Last { linear, table }, [values]) => {
                let target = match state {
                    State::Target(target) => target.shallow_clone(),
                    // Without single blocks the target comes directly from the image stream.
                    State::Streams { img, .. } => img.f_narrow(1, 0, self.target)?,
                    other => return Err(other.unexpected("the target's tokens or separate streams")),
                };
                let (shift, scale) = table.with(values).last(self.step.index)?;
                Ok(State::Velocity(linear.forward(&modulate(&target, &shift, &scale)?)?))
            }
            _ => Err(Error::invalid(
                "modulation of a piece",
                format!("{} tensors", self.modulation().len()),
                modulation.len(),
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use kontext_core::{Conditioning, Device, Kind, Tensor, Tokens, noise};
    use kontext_nn::Weights;

    use crate::{Dit, DitConfig, Run, RunInput, State};

    fn tiny(double_blocks: i64, single_blocks: i64) -> (Dit, Run, Tensor) {
        let config = DitConfig {
            in_channels: 4,
            out_channels: 4,
            heads: 2,
            head_dim: 8,
            axes_dim: [4, 2, 2],
            mlp_width: 32,
            double_blocks,
            single_blocks,
            context_dim: 6,
            pooled_dim: 5,
            guidance_embed: true,
        };
        let draw = |shape: &[i64], seed| noise::randn(shape, seed, Kind::Float, Device::Cpu).unwrap();
        let ids = |t: f64| Tensor::full([3, 3], t, (Kind::Float, Device::Cpu));
        let conditioning = Conditioning {
            prompt_embeds: draw(&[1, 2, 6], 1),
            pooled: draw(&[1, 5], 2),
        };
        let dit = Dit::new(&Weights::synthetic(3), &config, |_| ()).unwrap();
        let input = RunInput {
            conditioning: &conditioning,
            target_ids: &ids(0.0),
            context: Some(&Tokens::new(draw(&[1, 3, 4], 3), ids(1.0)).unwrap()),
            times: &[500.0],
            guidance: Some(2500.0),
        };
        let run = dit.prepare(&input).unwrap();
        (dit, run, draw(&[1, 3, 4], 4))
    }

    #[test]
    fn pieces_pass_streams_then_the_joined_sequence_then_the_target_and_end_in_the_velocity() {
        let path = |double, single| {
            let (dit, run, target) = tiny(double, single);
            let mut state = dit.enter(&run, &target).unwrap();
            let mut path = String::new();
            for piece in dit.pieces(&run, 0).unwrap() {
                let (name, lengths): (_, Vec<i64>) = match &state {
                    State::Streams { txt, img } => ('s', vec![txt.size()[1], img.size()[1]]),
                    State::Joined(x) => ('j', vec![x.size()[1]]),
                    State::Target(x) => ('t', vec![x.size()[1]]),
                    State::Velocity(x) => ('v', vec![x.size()[1]]),
                };
                path.push_str(&format!("{name}{lengths:?} "));
                state = piece.forward(&state, &piece.modulation()).unwrap();
            }
            assert!(state.velocity().unwrap().equal(&dit.forward(&run, 0, &target).unwrap()));
            path
        };
        assert_eq!(path(2, 3), "s[2, 6] s[2, 6] s[2, 6] j[8] j[8] t[3] ");
        assert_eq!(path(0, 1), "s[2, 6] t[3] ");
        assert_eq!(path(1, 0), "s[2, 6] s[2, 6] ");
    }

    #[test]
    fn the_state_or_modulation_of_another_piece_is_refused() {
        let (dit, run, target) = tiny(1, 2);
        let state = dit.enter(&run, &target).unwrap();
        let pieces = dit.pieces(&run, 0).unwrap();
        let (double, single) = (&pieces[0], &pieces[1]);
        let error = state.velocity().unwrap_err().to_string();
        assert_eq!(
            error,
            "invalid state of a step: expected the velocity, got separate streams"
        );
        let joined = single.forward(&state, &single.modulation()).unwrap();
        let error = double.forward(&joined, &double.modulation()).unwrap_err().to_string();
        assert!(
            error.contains("expected separate streams, got a joined sequence"),
            "{error}"
        );
        let error = double.forward(&state, &single.modulation()).unwrap_err().to_string();
        assert!(
            error.contains("modulation of a piece: expected 2 tensors, got 1"),
            "{error}"
        );
    }
}
