//! Training of small text encoders on the instructions of a dataset.
//!
//! T5 is trained on masked-word prediction (arXiv 1910.10683 section 3.3.1, with single words and a
//! classifier instead of a decoder). CLIP's pooled vector is trained to predict the set of words of a text,
//! masked or not: the summary of a text that the transformer's modulation needs.

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::path::Path;

use kontext::save_part;
use kontext_core::{Device, Error, Kind, ModelPart, Result, Tensor};
use kontext_nn::Weights;
use kontext_text::{ClipConfig, ClipEncoder, T5Config, T5Encoder};

use crate::optim::{AdamWConfig, Learner, LearnerConfig, Params};
use crate::run::segment::{Observer, Segment};
use crate::run::shell::Shell;
use crate::run::training::Training;

use super::corpus::{Batch, Corpus};
use super::initial::initial;
use super::text_recipe::TextRecipe;
use super::vocabulary::write_tokenizers;

/// Remedy for a loss that is not finite or has diverged: nothing is saved from which a run could go on.
const LOWER_RATE: &str = "nothing is saved of this encoder; begin again with a lower rate.peak";

/// Report of a training step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TextReport {
    /// The encoder: [`ModelPart::T5`] or [`ModelPart::Clip`].
    pub encoder: ModelPart,
    /// Finished steps.
    pub step: u64,
    /// Steps of this encoder.
    pub total: u64,
    /// The loss.
    pub loss: f64,
}

/// Makes tokenizers from the instructions, trains both encoders, and writes all four into `out`: the tokenizers,
/// then T5, then CLIP. An encoder is written once it is trained; a run that ends before begins again, to the same
/// bits.
///
/// # Errors
/// Those of [`TextRecipe::validate`]; [`Error::InvalidArgument`] if there are no instructions,
/// [`Error::Memory`] if the training takes more memory than is free, [`Error::Cancelled`] if `observe` breaks
/// off, [`Error::NotFinite`] and [`Error::Diverged`] if training fails, [`Error::Io`] if the folder cannot be
/// written.
pub fn train_text(
    recipe: &TextRecipe,
    instructions: &BTreeSet<String>,
    out: &Path,
    mut observe: impl FnMut(TextReport) -> ControlFlow<()>,
) -> Result<()> {
    recipe.validate()?;
    if instructions.is_empty() {
        return Err(Error::invalid("instructions", "at least one", 0));
    }
    let texts = instructions.iter().map(String::as_str);
    let (clip_vocab, t5_vocab) = write_tokenizers(out, texts, recipe.clip_tokens, recipe.t5_tokens)?;
    train_t5(recipe, instructions, out, t5_vocab, &mut observe)?;
    train_clip(recipe, instructions, out, clip_vocab, &mut observe)
}

fn train_t5(
    recipe: &TextRecipe,
    texts: &BTreeSet<String>,
    out: &Path,
    vocab: i64,
    observe: Observer<'_, TextReport>,
) -> Result<()> {
    let config = T5Config {
        vocab_size: vocab,
        d_model: recipe.width,
        d_kv: 32,
        d_ff: 2 * recipe.width,
        num_layers: recipe.layers,
        num_heads: recipe.width / 32,
        ..T5Config::xxl()
    };
    let build = |w: &Weights| T5Encoder::new(w, &config, Kind::Float).map(drop);
    let blank = Weights::blank();
    build(&blank)?;
    recipe.check_memory(ModelPart::T5, &blank, recipe.t5_tokens, vocab)?;
    let tensors = initial(recipe.seed, build)?;
    let corpus = Corpus::open(&out.join("tokenizer_2"), texts, recipe.t5_tokens, 2, 0)?;
    let scale = 8.0 / (recipe.width as f64).sqrt();
    let values = train(ModelPart::T5, recipe, &corpus, &tensors, observe, |params| {
        let model = T5Encoder::new(&params.weights(), &config, Kind::Float)?;
        let table = params.get("shared.weight").map(Tensor::shallow_clone);
        let table = table.ok_or_else(|| Error::bug("T5 without `shared.weight`"))?;
        Ok(move |batch: &Batch| {
            let logits = model
                .forward(&batch.masked)?
                .f_matmul(&table.f_transpose(0, 1)?)?
                .f_mul_scalar(scale)?;
            let logits = logits.f_flatten(0, 1)?.f_log_softmax(-1, Kind::Float)?; // [B T, V]
            let right = logits
                .f_gather(1, &batch.ids.f_reshape([-1, 1])?, false)?
                .f_reshape_as(&batch.weights)?;
            Ok(right
                .f_mul(&batch.weights)?
                .f_sum(Kind::Float)?
                .f_div(&batch.weights.f_sum(Kind::Float)?)?
                .f_neg()?)
        })
    })?;
    save_part::t5(out, &values, &config)
}

fn train_clip(
    recipe: &TextRecipe,
    texts: &BTreeSet<String>,
    out: &Path,
    vocab: i64,
    observe: Observer<'_, TextReport>,
) -> Result<()> {
    /// The classifier of words on the pooled vector; dropped after training.
    const HEAD: &str = "head.weight";
    let config = ClipConfig {
        vocab_size: vocab,
        hidden_size: recipe.width,
        intermediate_size: 2 * recipe.width,
        num_hidden_layers: recipe.layers,
        num_attention_heads: recipe.width / 32,
        max_position_embeddings: recipe.clip_tokens as i64,
        eos_token_id: vocab - 1,
        ..ClipConfig::large()
    };
    let build = |w: &Weights| ClipEncoder::new(w, &config, Kind::Float).map(drop);
    let blank = Weights::blank();
    build(&blank)?;
    recipe.check_memory(ModelPart::Clip, &blank, recipe.clip_tokens, 0)?;
    let mut tensors = initial(recipe.seed, build)?;
    tensors.extend(initial(recipe.seed, |w| {
        w.tensor(HEAD, &[vocab, recipe.width]).map(drop)
    })?);
    // CLIP has no mask token: the start-of-text token serves as one.
    let corpus = Corpus::open(&out.join("tokenizer"), texts, recipe.clip_tokens, vocab - 2, 1)?;
    let mut values = train(ModelPart::Clip, recipe, &corpus, &tensors, observe, |params| {
        let model = ClipEncoder::new(&params.weights(), &config, Kind::Float)?;
        let head = params.get(HEAD).map(Tensor::shallow_clone);
        let head = head.ok_or_else(|| Error::bug(format!("CLIP's values without `{HEAD}`")))?;
        Ok(move |batch: &Batch| {
            let pooled = model.forward(&batch.masked)?.pooled;
            let logits = pooled.f_linear(&head, None::<&Tensor>)?.f_sub_scalar(4.0)?; // [B, V]: most words are absent
            let present = logits.f_zeros_like()?.f_scatter_value(1, &batch.ids, 1.0)?;
            Ok(logits
                .f_binary_cross_entropy_with_logits(&present, None::<&Tensor>, None::<&Tensor>, tch::Reduction::Mean)?
                .f_mul_scalar(vocab as f64 / 8.0)?)
        })
    })?;
    values.retain(|(name, _)| name != HEAD);
    save_part::clip(out, &values, &config)
}

/// Trains the encoder whose loss `build` makes over the trainable tensors. Returns the trained values by
/// name.
fn train<L: Fn(&Batch) -> Result<Tensor>>(
    encoder: ModelPart,
    recipe: &TextRecipe,
    corpus: &Corpus,
    tensors: &[(String, Tensor)],
    observe: Observer<'_, TextReport>,
    build: impl FnOnce(&Params) -> Result<L>,
) -> Result<Vec<(String, Tensor)>> {
    let config = LearnerConfig {
        prefix: "",
        optimizer: AdamWConfig {
            weight_decay: 0.0,
            ..AdamWConfig::default()
        },
        ema: None,
        clip: 1.0,
        part: encoder,
        hint: LOWER_RATE,
    };
    let params = Params::new(tensors, Device::Cpu)?;
    let loss = build(&params)?;
    let mut training = TextTraining {
        encoder,
        recipe,
        corpus,
        learner: Learner::new(params, config)?,
        loss,
    };
    Shell::unsaved(recipe.steps, LOWER_RATE).run(&mut training, observe)?;
    training.learner.params.values()
}

/// The training loop of either encoder.
struct TextTraining<'a, L> {
    encoder: ModelPart,
    recipe: &'a TextRecipe,
    corpus: &'a Corpus,
    learner: Learner,
    loss: L,
}

impl<L: Fn(&Batch) -> Result<Tensor>> Training for TextTraining<'_, L> {
    type Event = TextReport;

    fn train(&mut self, segment: &mut Segment<'_, TextReport>) -> Result<()> {
        for step in segment.steps() {
            let value = (self.loss)(&self.corpus.batch(self.recipe, step)?)?;
            value.f_backward()?;
            let loss = value.f_double_value(&[])?;
            let lr = self.recipe.rate.at(step, self.recipe.steps);
            self.learner.update(step, loss, lr)?;
            let done = segment.finish_step(self.recipe.batch as u64, loss)?;
            segment.report(TextReport {
                encoder: self.encoder,
                step: done.step,
                total: done.total,
                loss,
            })?;
        }
        Ok(())
    }

    fn learners(&self) -> Vec<&Learner> {
        vec![&self.learner]
    }

    fn last_loss(&mut self, step: u64) -> Result<f64> {
        let batch = self.corpus.batch(self.recipe, step - 1)?;
        Ok(tch::no_grad(|| (self.loss)(&batch))?.f_double_value(&[])?)
    }
}

#[cfg(test)]
mod tests {
    use kontext_text::Tokenizer;

    use super::*;
    use crate::optim::LrSchedule;

    #[test]
    fn encoders_learn_a_small_language_and_open_as_parts_of_a_model() {
        let folder = tempfile::tempdir().unwrap();
        let colours = ["red", "green", "blue", "white"];
        let texts = colours
            .iter()
            .flat_map(|c| [format!("make the heart {c}"), format!("paint the book {c}")])
            .collect();
        let rate = LrSchedule {
            peak: 5e-3,
            warmup: 5,
            floor: 0.1,
        };
        let recipe = TextRecipe {
            width: 32,
            layers: 1,
            batch: 16,
            steps: 60,
            rate,
            ..TextRecipe::default()
        };
        let mut losses: Vec<TextReport> = Vec::new();
        train_text(&recipe, &texts, folder.path(), |report| {
            losses.push(report);
            ControlFlow::Continue(())
        })
        .unwrap();
        for name in [ModelPart::T5, ModelPart::Clip] {
            let values: Vec<f64> = losses.iter().filter(|r| r.encoder == name).map(|r| r.loss).collect();
            assert!(
                values[50..].iter().sum::<f64>() < 0.6 * values[..10].iter().sum::<f64>(),
                "{name}: {values:?}"
            );
        }
        let t5 = T5Encoder::open(folder.path().join("text_encoder_2"), Kind::Float, Device::Cpu).unwrap();
        let clip = ClipEncoder::open(folder.path().join("text_encoder"), Kind::Float, Device::Cpu).unwrap();
        let tokenizer = |name: &str| Tokenizer::open(folder.path().join(name)).unwrap();
        let text = kontext_text::TextEncoder::new(clip, tokenizer("tokenizer"), t5, tokenizer("tokenizer_2")).unwrap();
        let (encoded, _) = text.max_sequence_length(20).encode("make the heart blue").unwrap();
        assert_eq!(encoded.prompt_embeds.size(), [1, 20, 32]);
    }
}
