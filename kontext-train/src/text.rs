//! Training of small text encoders on the instructions of a dataset.
//!
//! T5 learns to fill in words that are blotted out (arXiv 1910.10683 section 3.3.1, with single
//! words and a classifier in place of a decoder). CLIP's pooled vector learns which words a text
//! holds, seen or blotted out: a summary of it, as the transformer's modulation needs.

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::path::Path;

use kontext::save_part;
use kontext_core::{Device, Error, Kind, Result, Tensor};
use kontext_text::{ClipConfig, ClipEncoder, T5Config, T5Encoder, Tokenizer};
use rand::RngExt;
use serde::{Deserialize, Serialize};

use crate::random::{Stream, generator, happens};
use crate::vocabulary::write_tokenizers;
use crate::{AdamW, AdamWConfig, Params, Rate, initial};

/// How text encoders are made and trained.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TextRecipe {
    /// Width of both encoders, a multiple of 32. Default 128.
    pub width: i64,
    /// Layers of each. Default 2.
    pub layers: i64,
    /// Tokens of T5, padding included. Default 20.
    pub t5_tokens: usize,
    /// The most tokens of CLIP. Default 24.
    pub clip_tokens: usize,
    /// Texts of a batch. Default 64.
    pub batch: usize,
    /// Steps of each encoder. Default 1000.
    pub steps: u64,
    /// The learning rate.
    pub rate: Rate,
    /// Share of words that are blotted out. Default 0.2.
    pub blotted: f64,
    /// Seed of everything random.
    pub seed: u64,
}

impl Default for TextRecipe {
    fn default() -> Self {
        Self {
            width: 128,
            layers: 2,
            t5_tokens: 20,
            clip_tokens: 24,
            batch: 64,
            steps: 1000,
            rate: Rate {
                peak: 2e-3,
                warmup: 50,
                floor: 0.02,
            },
            blotted: 0.2,
            seed: 0,
        }
    }
}

/// What a step tells.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TextReport {
    /// "T5" or "CLIP".
    pub encoder: &'static str,
    /// Steps done.
    pub step: u64,
    /// Steps of this encoder.
    pub total: u64,
    /// The loss.
    pub loss: f64,
}

/// One encoder in training.
struct Encoder {
    params: Params,
    ids: Vec<Vec<i64>>,
    used: Vec<usize>,
    vocab: i64,
    /// Takes a word's place.
    blot: i64,
    /// Tokens before the first word.
    first: usize,
}

/// Makes tokenizers of the instructions, trains both encoders, and writes all four into `out`.
///
/// # Errors
/// [`Error::InvalidArgument`] where there are no instructions, [`Error::Cancelled`] where `observe`
/// breaks off, [`Error::Io`] where the folder cannot be written.
pub fn train_text(
    recipe: &TextRecipe,
    instructions: &BTreeSet<String>,
    out: &Path,
    mut observe: impl FnMut(TextReport) -> ControlFlow<()>,
) -> Result<()> {
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
    observe: &mut dyn FnMut(TextReport) -> ControlFlow<()>,
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
    let tensors = initial(recipe.seed, |w| T5Encoder::new(w, &config, Kind::Float).map(drop))?;
    let tokenizer = Tokenizer::open(out.join("tokenizer_2"))?;
    let (ids, used) = encode(&tokenizer, texts, recipe.t5_tokens)?;
    let encoder = Encoder {
        params: Params::new(&tensors, Device::Cpu)?,
        ids,
        used,
        vocab,
        blot: 2,
        first: 0,
    };
    let model = T5Encoder::new(&encoder.params.weights(), &config, Kind::Float)?;
    let table = encoder.params.get("shared.weight").map(Tensor::shallow_clone);
    let table = table.ok_or_else(|| Error::invalid("T5's table", "`shared.weight`", "none"))?;
    let scale = 1.0 / (recipe.width as f64).sqrt();
    encoder.train("T5", recipe, observe, |batch| {
        let logits = model
            .forward(&batch.blotted)?
            .f_matmul(&table.f_transpose(0, 1)?)?
            .f_mul_scalar(scale * 8.0)?;
        let logits = logits.f_flatten(0, 1)?.f_log_softmax(-1, Kind::Float)?; // [B T, V]
        let right = logits
            .f_gather(1, &batch.ids.f_reshape([-1, 1])?, false)?
            .f_reshape_as(&batch.weights)?;
        Ok(right
            .f_mul(&batch.weights)?
            .f_sum(Kind::Float)?
            .f_div(&batch.weights.f_sum(Kind::Float)?)?
            .f_neg()?)
    })?;
    save_part::t5(out, &encoder.params.values()?, &config)
}

fn train_clip(
    recipe: &TextRecipe,
    texts: &BTreeSet<String>,
    out: &Path,
    vocab: i64,
    observe: &mut dyn FnMut(TextReport) -> ControlFlow<()>,
) -> Result<()> {
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
    /// Reads the words off the pooled vector; thrown away afterwards.
    const HEAD: &str = "head.weight";
    let mut tensors = initial(recipe.seed, |w| ClipEncoder::new(w, &config, Kind::Float).map(drop))?;
    tensors.extend(initial(recipe.seed, |w| {
        w.tensor(HEAD, &[vocab, recipe.width]).map(drop)
    })?);
    let tokenizer = Tokenizer::open(out.join("tokenizer"))?;
    let (ids, used) = encode(&tokenizer, texts, recipe.clip_tokens)?;
    // CLIP has no token for a blot: the one that begins a text stands in.
    let params = Params::new(&tensors, Device::Cpu)?;
    let encoder = Encoder {
        params,
        ids,
        used,
        vocab,
        blot: vocab - 2,
        first: 1,
    };
    let model = ClipEncoder::new(&encoder.params.weights(), &config, Kind::Float)?;
    let head = encoder.params.get(HEAD).map(Tensor::shallow_clone);
    let head = head.ok_or_else(|| Error::invalid("CLIP's head", "a tensor", "none"))?;
    encoder.train("CLIP", recipe, observe, |batch| {
        let pooled = model.forward(&batch.blotted)?.pooled;
        let logits = pooled.f_linear(&head, None::<&Tensor>)?.f_sub_scalar(4.0)?; // [B, V]: most words are not there
        let present = logits.f_zeros_like()?.f_scatter_value(1, &batch.ids, 1.0)?;
        Ok(logits
            .f_binary_cross_entropy_with_logits(&present, None::<&Tensor>, None::<&Tensor>, tch::Reduction::Mean)?
            .f_mul_scalar(encoder.vocab as f64 / 8.0)?)
    })?;
    let values = encoder
        .params
        .values()?
        .into_iter()
        .filter(|(name, _)| name != HEAD)
        .collect::<Vec<_>>();
    save_part::clip(out, &values, &config)
}

/// Texts of a step.
struct Batch {
    /// [B, T].
    ids: Tensor,
    /// The same with words blotted out.
    blotted: Tensor,
    /// How much each token counts: blotted words fully, other words little, padding not at all. [B, T].
    weights: Tensor,
}

impl Encoder {
    fn train(
        &self,
        name: &'static str,
        recipe: &TextRecipe,
        observe: &mut dyn FnMut(TextReport) -> ControlFlow<()>,
        loss: impl Fn(&Batch) -> Result<Tensor>,
    ) -> Result<()> {
        let config = AdamWConfig {
            weight_decay: 0.0,
            ..AdamWConfig::default()
        };
        let mut optimizer = AdamW::new(&self.params, config)?;
        for step in 0..recipe.steps {
            let value = loss(&self.batch(recipe, step)?)?;
            value.f_backward()?;
            let loss = value.f_double_value(&[])?;
            let stage = || format!("training step {} of {name}", step + 1);
            let (gradient, _) = self.params.take_gradient(loss, 1.0, stage, "take a lower rate.peak")?;
            optimizer.step(&self.params, &gradient, recipe.rate.at(step, recipe.steps))?;
            if observe(TextReport {
                encoder: name,
                step: step + 1,
                total: recipe.steps,
                loss,
            })
            .is_break()
            {
                return Err(Error::Cancelled {
                    done: step as usize + 1,
                    total: recipe.steps as usize,
                });
            }
        }
        Ok(())
    }

    fn batch(&self, recipe: &TextRecipe, step: u64) -> Result<Batch> {
        let mut rng = generator(recipe.seed, Stream::Step, step);
        let (mut ids, mut blotted, mut weights) = (Vec::new(), Vec::new(), Vec::<f32>::new());
        for _ in 0..recipe.batch {
            let text = rng.random_range(0..self.ids.len());
            let last = self.used[text] - 1;
            for (place, &id) in self.ids[text].iter().enumerate() {
                let word = place >= self.first && place < last;
                let blot = word && happens(&mut rng, recipe.blotted);
                ids.push(id);
                blotted.push(if blot { self.blot } else { id });
                weights.push(if blot {
                    1.0
                } else if word {
                    0.1
                } else {
                    0.0
                });
            }
        }
        let shape = [recipe.batch as i64, -1];
        Ok(Batch {
            ids: Tensor::f_from_slice(&ids)?.f_reshape(shape)?,
            blotted: Tensor::f_from_slice(&blotted)?.f_reshape(shape)?,
            weights: Tensor::f_from_slice(&weights)?.f_reshape(shape)?,
        })
    }
}

/// Every text as ids, and how many of them are not padding.
fn encode(tokenizer: &Tokenizer, texts: &BTreeSet<String>, length: usize) -> Result<(Vec<Vec<i64>>, Vec<usize>)> {
    let encoded = texts
        .iter()
        .map(|text| tokenizer.encode(text, length))
        .collect::<Result<Vec<_>>>()?;
    Ok(encoded.into_iter().map(|e| (e.ids, e.used)).unzip())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn encoders_learn_a_small_language_and_open_as_parts_of_a_model() {
        let folder = tempfile::tempdir().unwrap();
        let colours = ["red", "green", "blue", "white"];
        let texts = colours
            .iter()
            .flat_map(|c| [format!("make the heart {c}"), format!("paint the book {c}")])
            .collect();
        let rate = Rate {
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
        for name in ["T5", "CLIP"] {
            let of: Vec<f64> = losses.iter().filter(|r| r.encoder == name).map(|r| r.loss).collect();
            assert!(
                of[50..].iter().sum::<f64>() < 0.6 * of[..10].iter().sum::<f64>(),
                "{name}: {of:?}"
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
