//! The transformer: preparation once per run, and one step of the run.
//!
//! Source: black-forest-labs/flux@802fb47 `src/flux/model.py`, `Flux`.

use kontext_core::{Conditioning, During, Error, Kind, Result, Stage, Tensor, Tokens, check};
use kontext_kernels::Kernels;
use kontext_nn::{AdapterSlots, Linear, Weights};

use crate::double::{DoubleBlock, DoubleTable};
use crate::embed::VectorEmbed;
use crate::follow::Unfollowed;
use crate::kept::{BlockKv, Sizes};
use crate::modulation::{ModulationLayer, Scales, Table};
use crate::pass::Pass;
use crate::piece::{Part, Piece};
use crate::rope::Rope;
use crate::single::SingleBlock;
use crate::state::State;
use crate::step::Step;
use crate::{Arithmetic, DitConfig};

/// The velocity model of FLUX.1: a multimodal diffusion transformer.
#[derive(Debug)]
pub struct Dit {
    pub(crate) config: DitConfig,
    pub(crate) img_in: Linear,
    txt_in: Linear,
    vector: VectorEmbed,
    pub(crate) double_blocks: Vec<DoubleBlock>,
    pub(crate) single_blocks: Vec<SingleBlock>,
    last_modulation: ModulationLayer,
    pub(crate) last_linear: Linear,
    slots: AdapterSlots,
    pub(crate) kernels: Option<Kernels>,
}

/// Inputs of a run that do not depend on the sample.
#[derive(Debug)]
pub struct RunInput<'a> {
    /// Encoded prompt; its batch size is B.
    pub conditioning: &'a Conditioning,
    /// Positions of the target tokens [L, 3] in f32.
    pub target_ids: &'a Tensor,
    /// Tokens of the reference images, features [1 or B, R, C]; `None` without references.
    pub context: Option<&'a Tokens>,
    /// Time of each step on the scale of its embedding: 1000 is noise, 0 the image.
    pub times: &'a [f32],
    /// Guidance on the same scale (1000 times the user's value). Required by models with a guidance
    /// embedding, ignored by others.
    pub guidance: Option<f32>,
}

/// Result of [`Dit::prepare`]: rope table, projected text and context, modulation of all steps.
#[derive(Debug)]
pub struct Run {
    pub(crate) txt: Tensor,             // [B, T, D]
    pub(crate) context: Option<Tensor>, // [1 or B, R, D]
    pub(crate) target: i64,
    pub(crate) rope: Rope,
    double_tables: Vec<DoubleTable>,
    single_tables: Vec<Table>,
    last_table: Table,
    pub(crate) steps: usize,
    pub(crate) arithmetic: Arithmetic,
}

impl Run {
    /// Sets the roundings of the run's steps (default: [`Arithmetic::Fewest`]).
    #[must_use]
    pub fn arithmetic(self, arithmetic: Arithmetic) -> Self {
        Self { arithmetic, ..self }
    }

    /// Returns the pass that computes all tokens.
    pub(crate) fn whole(&self) -> Pass<'_> {
        Pass::whole(&self.rope, self.target, self.context.as_ref())
    }

    /// Returns the numbers of tokens.
    pub(crate) fn sizes(&self) -> Sizes {
        Sizes {
            text: self.txt.size()[1],
            target: self.target,
            references: self.references(),
        }
    }

    /// Returns the number of reference tokens (R).
    pub(crate) fn references(&self) -> i64 {
        self.context.as_ref().map_or(0, |context| context.size()[1])
    }

    /// Returns `true` if the modulation is in the form that kernels read.
    pub(crate) fn plain_scales(&self) -> bool {
        self.last_table.scales() == Scales::Plain
    }

    /// Returns `true` if a gradient passes through the run.
    pub(crate) fn requires_grad(&self) -> bool {
        let tables = self.double_tables.iter().flat_map(DoubleTable::values);
        let tables = tables.chain(self.single_tables.iter().map(Table::values));
        let others = [Some(self.last_table.values()), Some(self.txt.shallow_clone())];
        let others = others
            .into_iter()
            .chain([self.context.as_ref().map(Tensor::shallow_clone)]);
        tables.chain(others.flatten()).any(|tensor| tensor.requires_grad())
    }
}

impl Dit {
    /// Reads the model in BFL's naming; for diffusers' files pass
    /// `weights.named(kontext_dit::names::diffusers)`.
    ///
    /// `progress` is called after each block with the number of finished blocks.
    ///
    /// # Errors
    /// Those of [`Weights::tensor`], and a checkpoint error for an invalid configuration. Unused tensors are
    /// not checked: call [`Weights::finish`].
    pub fn new(w: &Weights, config: &DitConfig, mut progress: impl FnMut(usize)) -> Result<Self> {
        config.validate().map_err(Error::in_config(w.path()))?;
        let (w, slots) = &w.with_slots();
        let width = config.width();
        let mut done = 0;
        let mut double_blocks = Vec::new();
        for index in 0..config.double_blocks {
            double_blocks.push(DoubleBlock::new(&w.at("double_blocks").at(index.to_string()), config)?);
            done += 1;
            progress(done);
        }
        let mut single_blocks = Vec::new();
        for index in 0..config.single_blocks {
            single_blocks.push(SingleBlock::new(&w.at("single_blocks").at(index.to_string()), config)?);
            done += 1;
            progress(done);
        }
        // Input and output projections are small and error-critical: never quantised at load, nor multiplied in fp8.
        let w = w.clone().quantized(None).fp8_products(false);
        let last = w.at("final_layer");
        Ok(Self {
            img_in: Linear::new(&w.at("img_in"), config.in_channels, width)?,
            txt_in: Linear::new(&w.at("txt_in"), config.context_dim, width)?,
            vector: VectorEmbed::new(&w, config)?,
            double_blocks,
            single_blocks,
            last_modulation: ModulationLayer::new(&last.at("adaLN_modulation.1"), width, 2)?,
            last_linear: Linear::new(&last.at("linear"), width, config.out_channels)?,
            config: config.clone(),
            slots: slots.clone(),
            kernels: None,
        })
    }

    /// Returns the adapter slots of the linear layers, by BFL's names: `double_blocks.0.img_attn.qkv`.
    #[must_use]
    pub fn slots(&self) -> &AdapterSlots {
        &self.slots
    }

    /// Returns the configuration.
    #[must_use]
    pub fn config(&self) -> &DitConfig {
        &self.config
    }

    /// Computes everything that does not depend on the sample, for all steps of a run.
    ///
    /// The dtype of `conditioning.prompt_embeds` is the compute dtype of the run.
    ///
    /// # Errors
    /// [`Error::Shape`] for tensors of other sizes, [`Error::InvalidArgument`] for a missing
    /// guidance value or no steps.
    pub fn prepare(&self, input: &RunInput<'_>) -> Result<Run> {
        self.check(input, input.guidance.as_slice())?;
        self.prepare_checked(input, input.guidance.as_slice(), false)
            .during(Stage::Prepare)
    }

    /// Prepares, as [`Dit::prepare`], with a guidance value for each step instead of `input.guidance`. With one value
    /// in all steps, the run has the bytes of one that is prepared with it.
    ///
    /// # Errors
    /// Those of [`Dit::prepare`], and [`Error::InvalidArgument`] for another number of values than steps.
    pub fn prepare_guided(&self, input: &RunInput<'_>, guidance: &[f32]) -> Result<Run> {
        self.check(input, guidance)?;
        if guidance.len() != input.times.len() {
            let expected = format!("{} values, one for each step", input.times.len());
            return Err(Error::invalid("guidance", expected, guidance.len()));
        }
        self.prepare_checked(input, guidance, false).during(Stage::Prepare)
    }

    /// Prepares, as [`Dit::prepare`], a single step in which every item of the batch has a separate time, as
    /// in training: `times` holds B values.
    ///
    /// # Errors
    /// Those of [`Dit::prepare`], and [`Error::InvalidArgument`] for another number of times.
    pub fn prepare_items(&self, input: &RunInput<'_>) -> Result<Run> {
        self.check(input, input.guidance.as_slice())?;
        let batch = input.conditioning.prompt_embeds.size()[0];
        if input.times.len() as i64 != batch {
            return Err(Error::invalid(
                "times",
                format!("{batch}, one for each item"),
                input.times.len(),
            ));
        }
        self.prepare_checked(input, input.guidance.as_slice(), true)
            .during(Stage::Prepare)
    }

    fn check(&self, input: &RunInput<'_>, guidance: &[f32]) -> Result<()> {
        let Conditioning { prompt_embeds, pooled } = input.conditioning;
        check::shape(
            "prompt_embeds",
            prompt_embeds,
            "[B, T, context_dim]",
            &[None, None, Some(self.config.context_dim)],
        )?;
        check::shape(
            "pooled",
            pooled,
            "[B, pooled_dim]",
            &[prompt_embeds.size().first().copied(), Some(self.config.pooled_dim)],
        )?;
        check::shape("target_ids", input.target_ids, "[L, 3]", &[None, Some(3)])?;
        if let Some(context) = input.context {
            check::shape(
                "context",
                &context.features,
                "[B, R, in_channels]",
                &[None, Some(context.len()), Some(self.config.in_channels)],
            )?;
        }
        if input.times.is_empty() {
            return Err(Error::invalid("steps", "at least one", 0));
        }
        if self.config.guidance_embed && guidance.is_empty() {
            return Err(Error::invalid(
                "guidance",
                "a value, because this model embeds it",
                "none",
            ));
        }
        Ok(())
    }

    fn prepare_checked(&self, input: &RunInput<'_>, guidance: &[f32], by_item: bool) -> Result<Run> {
        let Conditioning { prompt_embeds, pooled } = input.conditioning;
        let (device, kind) = (prompt_embeds.device(), prompt_embeds.kind());
        let times = Tensor::f_from_slice(input.times)?.f_to_device(device)?;
        let embed = if by_item {
            VectorEmbed::forward_items
        } else {
            VectorEmbed::forward
        };
        let vectors = embed(&self.vector, &times, guidance, &pooled.f_to_kind(kind)?)?.f_silu()?;

        let scales = if self.has_kernels_for(kind, prompt_embeds) {
            Scales::Plain
        } else {
            Scales::WithOne
        };

        let text_ids = Tensor::f_zeros([prompt_embeds.size()[1], 3], (Kind::Float, device))?;
        let mut ids = vec![text_ids, input.target_ids.f_to_device(device)?];
        ids.extend(input.context.map(|c| c.ids.f_to_device(device)).transpose()?);
        let context = input
            .context
            .map(|c| self.img_in.forward(&c.features.f_to_device(device)?.f_to_kind(kind)?))
            .transpose()?;
        Ok(Run {
            txt: self.txt_in.forward(prompt_embeds)?,
            context,
            target: input.target_ids.size()[0],
            rope: Rope::new(&Tensor::f_cat(&ids, 0)?, &self.config.axes_dim)?,
            double_tables: self
                .double_blocks
                .iter()
                .map(|b| b.table(&vectors, scales))
                .collect::<Result<_>>()?,
            single_tables: self
                .single_blocks
                .iter()
                .map(|b| b.table(&vectors, scales))
                .collect::<Result<_>>()?,
            last_table: self.last_modulation.table(&vectors, scales)?,
            steps: if by_item { 1 } else { input.times.len() },
            arithmetic: Arithmetic::default(),
        })
    }

    /// Predicts the velocity at one step of a run: `noise - image`, in latents.
    ///
    /// # Shapes
    /// `target` [N, L, in_channels] in the run's dtype, with N equal to the run's B, or any N if B is 1;
    /// returns [N, L, out_channels].
    ///
    /// # Errors
    /// [`Error::Shape`] if the target's length differs from that of the run's ids, [`Error::InvalidArgument`]
    /// for a step outside the run.
    pub fn forward(&self, run: &Run, step: usize, target: &Tensor) -> Result<Tensor> {
        self.check_target(run, target)?;
        check_step(run, step)?;
        self.forward_pass(run, step as i64, target, &run.whole())
            .during(Stage::Forward)
    }

    pub(crate) fn forward_pass(&self, run: &Run, step: i64, target: &Tensor, pass: &Pass<'_>) -> Result<Tensor> {
        self.forward_followed(run, step, target, pass, &mut Unfollowed)
    }

    /// Projects the target and joins it with the context; returns the input of the first [`Piece`],
    /// [`State::Streams`].
    ///
    /// # Errors
    /// [`Error::Shape`] if the target's length differs from that of the run's ids.
    pub fn enter(&self, run: &Run, target: &Tensor) -> Result<State> {
        self.check_target(run, target)?;
        self.enter_checked(run, target, &run.whole()).during(Stage::Forward)
    }

    pub(crate) fn enter_checked(&self, run: &Run, target: &Tensor, pass: &Pass<'_>) -> Result<State> {
        let batch = target.size()[0];
        let mut img = self.img_in.forward(target)?;
        if let Some(context) = pass.context {
            img = Tensor::f_cat(&[&img, &expand(context, batch)?], 1)?; // [N, L + R, D]
        }
        let txt = expand(&run.txt, batch)?;
        Ok(State::Streams { txt, img })
    }

    /// Returns the blocks and the last layer in order: `forward` split at the points with the fewest live
    /// activations. Training uses the pieces for activation checkpointing: it recomputes a piece in the
    /// backward pass instead of keeping its inner activations.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a step outside the run.
    pub fn pieces<'a>(&'a self, run: &'a Run, step: usize) -> Result<Vec<Piece<'a>>> {
        check_step(run, step)?;
        self.pieces_at(run, step as i64, &run.whole()).collect()
    }

    /// Makes the pieces one by one.
    pub(crate) fn pieces_at<'a>(
        &'a self,
        run: &'a Run,
        step: i64,
        pass: &Pass<'a>,
    ) -> impl Iterator<Item = Result<Piece<'a>>> + use<'a> {
        let pass = *pass;
        let piece = move |(index, part)| {
            let kv = match part {
                Part::Last { .. } => BlockKv::Own,
                Part::Double(..) | Part::Single { .. } => pass.block(index)?,
            };
            Ok(Piece {
                part,
                step: Step {
                    rope: pass.rope,
                    index: step,
                    arithmetic: run.arithmetic,
                    kv,
                },
                text: run.txt.size()[1],
                target: pass.target,
            })
        };
        let double = self
            .double_blocks
            .iter()
            .zip(&run.double_tables)
            .map(|(b, t)| Part::Double(b, t));
        let count = self.single_blocks.len();
        let single = self.single_blocks.iter().zip(&run.single_tables).enumerate();
        let single = single.map(move |(index, (block, table))| Part::Single {
            block,
            table,
            last: index + 1 == count,
        });
        let last = Part::Last {
            linear: &self.last_linear,
            table: &run.last_table,
        };
        double.chain(single).chain([last]).enumerate().map(piece)
    }

    pub(crate) fn check_target(&self, run: &Run, target: &Tensor) -> Result<()> {
        let sizes = [None, Some(run.target), Some(self.config.in_channels)];
        check::shape("target", target, "[N, L, in_channels]", &sizes)
    }
}

pub(crate) fn check_step(run: &Run, step: usize) -> Result<()> {
    if step < run.steps {
        Ok(())
    } else {
        Err(Error::invalid("step", format!("below {}", run.steps), step))
    }
}

/// Expands a batch of one to `batch` items, without a copy.
pub(crate) fn expand(x: &Tensor, batch: i64) -> Result<Tensor> {
    Ok(if x.size().first() == Some(&1) {
        x.f_expand([batch, -1, -1], false)?
    } else {
        x.shallow_clone()
    })
}
