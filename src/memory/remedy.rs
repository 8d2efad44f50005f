//! Advice on memory that is too small: a setting that helps the stage that takes most.

use kontext_core::Stage;

use super::Footprint;
use crate::Plan;
use crate::placement::{Arrangement, Placement};

impl Footprint {
    /// Returns advice for a run that takes more than `total` bytes, weights included.
    ///
    /// A placement is named if it makes the run fit, or takes at most half the memory: a few weights next to many
    /// activations are not worth loading again.
    pub(super) fn remedy(&self, plan: &Plan, arrangement: Arrangement, stage: Stage, total: u64) -> String {
        let settings = self.settings(plan, stage);
        let peak = |arrangement: Arrangement| self.plan(plan, arrangement).peak().1;
        let own = peak(arrangement);
        let all = Placement::Auto.arrangements(self.machine.device).into_iter();
        let smaller: Vec<Arrangement> = all
            .skip_while(|other| other.placement != arrangement.placement)
            .filter(|other| other.placement != arrangement.placement)
            .collect();
        if let Some(fits) = smaller.iter().find(|other| peak(**other) <= total) {
            return format!("load with Placement::{:?}, or {settings}", fits.placement);
        }
        match smaller.last().filter(|other| peak(**other) <= own / 2) {
            Some(last) => format!("load with Placement::{:?} and {settings}", last.placement),
            None => settings,
        }
    }

    /// Returns the settings of a run that make a stage smaller.
    fn settings(&self, plan: &Plan, stage: Stage) -> String {
        let fewer_words = "set a smaller max_sequence_length";
        let smaller = "make the image smaller";
        let tiles = if self.tiling.is_none() {
            ", or let the autoencoder work in tiles"
        } else {
            ""
        };
        match stage {
            Stage::Text => fewer_words.to_owned(),
            Stage::Denoise if self.kept_keys(plan) > 0 => {
                format!("leave out reference_reuse, {smaller} or run fewer at once")
            }
            Stage::Denoise if 2 * plan.text_tokens > plan.tokens() => format!("{fewer_words} or run fewer at once"),
            Stage::Denoise => format!("{smaller} or run fewer at once"),
            _ if tiles.is_empty() => format!("{smaller} or run fewer at once"),
            _ => format!("{smaller}, run fewer at once{tiles}"),
        }
    }
}
