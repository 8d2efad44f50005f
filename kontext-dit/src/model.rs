//! The transformer: what is prepared once for a run, and one step of it.
//!
//! Source: black-forest-labs/flux@802fb47 `src/flux/model.py`, `Flux`.

use kontext_core::nn::Linear;
use kontext_core::{Conditioning, During, Error, Kind, Result, Tensor, Tokens, Weights, check};

use crate::DitConfig;
use crate::double::{DoubleBlock, DoubleTable};
use crate::embed::VectorEmbed;
use crate::modulation::{ModulationLayer, Table, modulate};
use crate::rope::Rope;
use crate::single::SingleBlock;

/// The velocity model of FLUX.1: a multimodal diffusion transformer.
#[derive(Debug)]
pub struct Dit {
    config: DitConfig,
    img_in: Linear,
    txt_in: Linear,
    vector: VectorEmbed,
    double_blocks: Vec<DoubleBlock>,
    single_blocks: Vec<SingleBlock>,
    last_modulation: ModulationLayer,
    last_linear: Linear,
}

/// Everything of a run that does not depend on the sample.
#[derive(Debug)]
pub struct RunInput<'a> {
    /// The encoded prompt; its batch is B.
    pub conditioning: &'a Conditioning,
    /// Positions of the target's tokens [L, 3] in f32.
    pub target_ids: &'a Tensor,
    /// The reference pictures' tokens, features [1 or B, R, C], if there are any.
    pub context: Option<&'a Tokens>,
    /// The time of each step on the scale on which it is embedded: 1000 is noise, 0 the picture.
    pub times: &'a [f32],
    /// The guidance value on the same scale (1000 times the value that users give). Models without
    /// a guidance embedding ignore it, models with one need it.
    pub guidance: Option<f32>,
}

/// What [`Dit::prepare`] made: rope table, projected text and context, modulation of all steps.
#[derive(Debug)]
pub struct Run {
    txt: Tensor,             // [B, T, D]
    context: Option<Tensor>, // [1 or B, R, D]
    target: i64,
    rope: Rope,
    double_tables: Vec<DoubleTable>,
    single_tables: Vec<Table>,
    last_table: Table,
    steps: usize,
}

impl Dit {
    /// Reads the model in BFL's naming; for diffusers' files pass
    /// `weights.named(kontext_dit::names::diffusers)`.
    ///
    /// `progress` is called after each block with the number of finished blocks.
    ///
    /// # Errors
    /// Those of [`Weights::tensor`]. The account is not closed: call [`Weights::finish`].
    pub fn new(w: &Weights, config: &DitConfig, mut progress: impl FnMut(usize)) -> Result<Self> {
        config.validate().map_err(|reason| Error::config(w.path(), reason))?;
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
        let last = w.at("final_layer");
        Ok(Self {
            img_in: Linear::new(&w.at("img_in"), config.in_channels, width)?,
            txt_in: Linear::new(&w.at("txt_in"), config.context_dim, width)?,
            vector: VectorEmbed::new(w, config)?,
            double_blocks,
            single_blocks,
            last_modulation: ModulationLayer::new(&last.at("adaLN_modulation.1"), width, 2)?,
            last_linear: Linear::new(&last.at("linear"), width, config.out_channels)?,
            config: config.clone(),
        })
    }

    /// The model's sizes.
    #[must_use]
    pub fn config(&self) -> &DitConfig {
        &self.config
    }

    /// Computes what does not depend on the sample, for all steps of a run.
    ///
    /// The kind of `conditioning.prompt_embeds` is the kind of the run's computations.
    ///
    /// # Errors
    /// [`Error::Shape`] for tensors of other sizes, [`Error::InvalidArgument`] for a missing
    /// guidance value or no steps.
    pub fn prepare(&self, input: &RunInput<'_>) -> Result<Run> {
        self.check(input)?;
        self.prepare_checked(input).during("preparing the transformer's run")
    }

    fn check(&self, input: &RunInput<'_>) -> Result<()> {
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
        if self.config.guidance_embed && input.guidance.is_none() {
            return Err(Error::invalid("guidance", "a value, because this model embeds it", "none"));
        }
        Ok(())
    }

    fn prepare_checked(&self, input: &RunInput<'_>) -> Result<Run> {
        let Conditioning { prompt_embeds, pooled } = input.conditioning;
        let (device, kind) = (prompt_embeds.device(), prompt_embeds.kind());
        let times = Tensor::f_from_slice(input.times)?.f_to_device(device)?;
        let guidance = input.guidance.map(|g| Tensor::f_from_slice(&[g])?.f_to_device(device)).transpose()?;
        let vectors = self.vector.forward(&times, guidance.as_ref(), &pooled.f_to_kind(kind)?)?.f_silu()?;

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
            double_tables: self.double_blocks.iter().map(|b| b.table(&vectors)).collect::<Result<_>>()?,
            single_tables: self.single_blocks.iter().map(|b| b.table(&vectors)).collect::<Result<_>>()?,
            last_table: self.last_modulation.table(&vectors)?,
            steps: input.times.len(),
        })
    }

    /// The velocity at one step of a run, `noise - picture` as the model sees it.
    ///
    /// # Shapes
    /// `target` [N, L, in_channels] in the run's kind, where N is the run's B, or anything if B is
    /// 1; returns [N, L, out_channels].
    ///
    /// # Errors
    /// [`Error::Shape`] where the target has another length than the run's ids,
    /// [`Error::InvalidArgument`] for a step outside the run.
    pub fn forward(&self, run: &Run, step: usize, target: &Tensor) -> Result<Tensor> {
        check::shape(
            "target",
            target,
            "[N, L, in_channels]",
            &[None, Some(run.target), Some(self.config.in_channels)],
        )?;
        if step >= run.steps {
            return Err(Error::invalid("step", format!("below {}", run.steps), step));
        }
        self.forward_checked(run, step as i64, target).during("running the transformer")
    }

    fn forward_checked(&self, run: &Run, step: i64, target: &Tensor) -> Result<Tensor> {
        let batch = target.size()[0];
        let mut img = self.img_in.forward(target)?;
        if let Some(context) = &run.context {
            img = Tensor::f_cat(&[&img, &expand(context, batch)?], 1)?; // [N, L + R, D]
        }
        let mut txt = expand(&run.txt, batch)?;
        let text = txt.size()[1];
        for (block, table) in self.double_blocks.iter().zip(&run.double_tables) {
            (txt, img) = block.forward(&txt, &img, &run.rope, table, step)?;
        }
        let mut target = img.f_narrow(1, 0, run.target)?;
        if let Some((last, blocks)) = self.single_blocks.split_last() {
            let mut x = Tensor::f_cat(&[&txt, &img], 1)?; // [N, T + L + R, D]
            for (block, table) in blocks.iter().zip(&run.single_tables) {
                x = block.forward(&x, &run.rope, table, step)?;
            }
            let table =
                run.single_tables.last().ok_or_else(|| Error::invalid("run", "a run of this model", "another"))?;
            target = last.forward_target(&x, &run.rope, table, step, text, run.target)?;
        }
        let (shift, scale) = run.last_table.last(step)?;
        self.last_linear.forward(&modulate(&target, &shift, &scale)?)
    }
}

/// One item serves the whole batch, without a copy.
fn expand(x: &Tensor, batch: i64) -> Result<Tensor> {
    Ok(if x.size().first() == Some(&1) { x.f_expand([batch, -1, -1], false)? } else { x.shallow_clone() })
}
