//! Progress bars on loading and on steps.

use indicatif::{ProgressBar, ProgressStyle};
use kontext::{Event, Loading};

/// A bar that hides itself where stderr is no terminal.
pub fn bar(what: &'static str, total: usize) -> ProgressBar {
    let style = ProgressStyle::with_template("{prefix:>12} {bar:30} {pos}/{len} {msg} [{elapsed}, {eta} left]");
    let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(total as u64).with_style(style).with_prefix(what)
}

/// Shows how far loading has come.
pub fn loading() -> impl FnMut(Loading) {
    let mut shown: Option<ProgressBar> = None;
    move |loading| {
        let bar = shown.get_or_insert_with(|| bar("loading", loading.total));
        bar.set_message(loading.part);
        bar.set_position(loading.done as u64);
        if loading.done == loading.total {
            bar.finish_and_clear();
        }
    }
}

/// Shows how far sampling has come.
pub fn sampling() -> impl FnMut(&Event<'_>) {
    let mut shown: Option<ProgressBar> = None;
    move |event| {
        if let Event::Step { done, total, .. } = *event {
            let bar = shown.get_or_insert_with(|| bar("sampling", total));
            bar.set_position(done as u64);
            if done == total {
                bar.finish_and_clear();
            }
        }
    }
}
