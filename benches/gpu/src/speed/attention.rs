//! Attention by each kernel at the sizes of FLUX.1, and steps of an edit with FlashAttention 3.

use std::path::{Path, PathBuf};
use std::rc::Rc;

use kontext::Attention;
use kontext_core::check::relative_l2;
use kontext_nn::ops::attend_tokens;

use super::shared::{Shared, WORKS};
use super::timing::timed;
use crate::attention::{HEADS, WIDTH, choices, heads, open, unfit};
use crate::pace::pace;
use crate::row::Outcome;
use crate::suite::Case;

/// Tokens of an edit and of text-to-image at 1024x1024.
const TOKENS: [i64; 2] = [8704, 4608];

/// Returns the cases that need no model.
pub(super) fn cases(shared: &Rc<Shared>, fa3: Option<&Path>) -> Vec<Case<'static>> {
    let mut cases = Vec::new();
    for tokens in TOKENS {
        for (name, choice) in choices(fa3) {
            let shared = Rc::clone(shared);
            let name = format!("attention {tokens}/kontext, {name}");
            cases.push(Case::new(name, move || by_itself(&shared, tokens, choice.as_ref())));
        }
    }
    cases
}

/// Returns the steps with FlashAttention 3.
pub(super) fn steps(shared: &Rc<Shared>, fa3: Option<&Path>) -> Vec<Case<'static>> {
    let fa3 = fa3.map(PathBuf::from);
    let of_flash3 = choices(fa3.as_deref())
        .into_iter()
        .filter(|(name, _)| name.starts_with("flash3"));
    let [edit, ..] = WORKS;
    let case = |(name, choice): (&str, Option<Attention>)| {
        let shared = Rc::clone(shared);
        Case::new(format!("{}/kontext, {name}", edit.name), move || {
            step(&shared, choice.as_ref())
        })
    };
    of_flash3.map(case).collect()
}

fn by_itself(shared: &Shared, tokens: i64, choice: Option<&Attention>) -> anyhow::Result<Outcome> {
    let on = shared.device;
    let reason = unfit(choice, on)?;
    let (None, Some(choice)) = (reason.as_ref(), choice) else {
        return Ok(Outcome::skipped(reason.unwrap_or_default()));
    };
    let tokens = tokens / i64::from(shared.scale.divisor);
    let [q, k, v] = heads(on, tokens)?;
    let backend = open(choice, on)?;
    let pace = pace(on, || Ok(backend.scope(|| attend_tokens(&q, &k, &v))?))?;
    let mut outcome = Outcome::default();
    outcome.value("ms", pace.ms);
    outcome.value("ms of the first call", pace.first_ms);
    outcome.value("tflops", (4 * tokens * tokens * HEADS * WIDTH) as f64 / pace.ms / 1e9);
    outcome.value("kernel", backend.kernel(HEADS, WIDTH)?.to_string());
    Ok(outcome)
}

/// Times a step with a choice, and its distance from one with libtorch's.
fn step(shared: &Shared, choice: Option<&Attention>) -> anyhow::Result<Outcome> {
    let reason = unfit(choice, shared.device)?;
    let (None, Some(choice)) = (reason.as_ref(), choice) else {
        return Ok(Outcome::skipped(reason.unwrap_or_default()));
    };
    let [edit, ..] = WORKS;
    let backend = open(choice, shared.device)?;
    shared.use_kernels(true)?;
    let (parts, entrance) = (shared.parts()?, shared.entrance(edit)?);
    let run = entrance.prepare(&parts.dit)?;
    let forward = || parts.dit.forward(&run, 0, &entrance.target);
    let expected = forward()?;
    let mut outcome = Outcome::default();
    timed(shared.device, &mut outcome, || Ok(backend.scope(forward)?))?;
    outcome.value("relative_l2", relative_l2(&backend.scope(forward)?, &expected)?);
    Ok(outcome)
}
