//! The prompts of a run, encoded.

use kontext_core::{Conditioning, Result};
use kontext_text::{Prompt, TextEncoder, Unseen};

use super::Pipeline;
use super::adapted::Adapted;
use super::computing::Computing;
use super::run::{Observer, notify};
use crate::lora::LoraSet;
use crate::{Event, Plan, Request};

/// Both prompts of a run.
#[derive(Debug)]
pub(super) struct EncodedTexts {
    pub(super) positive: Conditioning,
    /// `None` if the run does not use it.
    pub(super) negative: Option<Conditioning>,
    /// Text of both that an encoder did not see.
    pub(super) unseen: Unseen,
}

impl Pipeline {
    /// Encodes the prompt and, if used, the negative prompt.
    pub(super) fn encode_texts(
        &self,
        computing: &Computing,
        request: &Request,
        plan: &Plan,
        loras: &LoraSet,
        observe: Observer<'_>,
    ) -> Result<EncodedTexts> {
        let (text_loras, compute) = (loras.text_key(), plan.compute.text);
        let mut text: Option<Adapted<'_, TextEncoder>> = None;
        let mut all_unseen = Unseen::default();
        let mut encode = |prompt: Prompt<'_>, negative: bool| -> Result<Conditioning> {
            let cached = self.encodings.text(prompt, &text_loras, compute);
            let is_cached = cached.is_some();
            let encoded = match cached {
                Some(cached) => cached,
                None => {
                    let encoder = match &text {
                        Some(leased) => leased,
                        None => text.insert(self.lease_text(loras)?),
                    };
                    computing.text(|| encoder.with(|encoder| encoder.encode_in(prompt, compute)))?
                }
            };
            if !is_cached {
                self.encodings.add_text(prompt, &text_loras, compute, &encoded);
            }
            let (conditioning, unseen) = encoded;
            // A cached prompt is truncated as the first one was.
            for truncation in &unseen.truncated {
                notify(observe, plan, Event::PromptTruncated { truncation })?;
            }
            for unknown in &unseen.unknown {
                notify(observe, plan, Event::UnknownWords { unknown })?;
            }
            let event = Event::Encoded {
                conditioning: &conditioning,
                negative,
                cached: is_cached,
            };
            notify(observe, plan, event)?;
            all_unseen.truncated.extend(unseen.truncated);
            all_unseen.unknown.extend(unseen.unknown);
            Ok(conditioning)
        };
        let positive = encode(request.positive(), false)?;
        let negative = request.negative().map(|prompt| encode(prompt, true)).transpose()?;
        if let Some(text) = text {
            text.end();
        }
        Ok(EncodedTexts {
            positive,
            negative,
            unseen: all_unseen,
        })
    }
}
