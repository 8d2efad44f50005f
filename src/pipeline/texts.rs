//! The prompts of a run, encoded.

use kontext_core::{Conditioning, Result};
use kontext_text::{Prompt, TextEncoder, Unseen};

use super::Pipeline;
use super::adapted::Adapted;
use super::computing::Computing;
use super::encodings::{Lookup, PromptKey};
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
            let key = PromptKey {
                clip: prompt.clip.to_owned(),
                t5: prompt.t5.to_owned(),
                loras: text_loras.clone(),
                weighted: request.weighs_words(),
                compute,
                threads: plan.threads.map(|threads| threads.text),
            };
            let (encoded, cached) = match self.encodings.text(key) {
                Lookup::Cached(encoded) => (encoded, true),
                Lookup::Missing(missing) => {
                    let encoder = match &text {
                        Some(leased) => leased,
                        None => text.insert(self.lease_text(loras)?),
                    };
                    let encoded = computing.text(|| {
                        encoder.with(|encoder| {
                            if request.weighs_words() {
                                encoder.encode_weighted(prompt, compute)
                            } else {
                                encoder.encode_in(prompt, compute)
                            }
                        })
                    })?;
                    missing.add(&encoded);
                    (encoded, false)
                }
            };
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
                cached,
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
