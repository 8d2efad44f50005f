//! Progress bars for loading, sampling and long runs.

use std::fmt::Display;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use kontext::{Event, LoadProgress};

use crate::program::note;

/// All bars of the program: a line that is written between them would be drawn over.
static BARS: LazyLock<MultiProgress> = LazyLock::new(MultiProgress::new);
/// Interval of the lines that replace a bar if stderr is no terminal.
const LINES: Duration = Duration::from_secs(30);

/// Returns a bar, which hides itself if stderr is no terminal.
#[must_use]
pub fn bar(label: &'static str, total: usize) -> ProgressBar {
    let style = ProgressStyle::with_template("{prefix:>12} {bar:30} {pos}/{len} {msg} [{elapsed}, {eta} left]");
    let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
    BARS.add(ProgressBar::new(total as u64).with_style(style).with_prefix(label))
}

/// Writes a line to stderr, above the bars that are shown.
pub fn above(line: impl Display) {
    BARS.suspend(|| note(line));
}

/// Runs `write` while no bar is shown.
pub fn between(write: impl FnOnce()) {
    BARS.suspend(write);
}

/// Returns an observer that shows the progress of loading.
pub fn loading() -> impl FnMut(LoadProgress) {
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

/// Returns an observer that shows the progress of sampling.
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

/// A bar that becomes a line every 30 seconds if stderr is no terminal.
#[derive(Debug)]
pub struct Reporter {
    bar: ProgressBar,
    last_line: Instant,
}

impl Reporter {
    /// Shows a bar of `total` steps.
    #[must_use]
    pub fn new(label: &'static str, total: u64) -> Self {
        Self {
            bar: bar(label, total as usize),
            last_line: Instant::now(),
        }
    }

    /// Starts the bar at a position other than 0, for a continued run.
    #[must_use]
    pub fn starting_at(mut self, done: u64) -> Self {
        self.bar = self.bar.with_position(done);
        self
    }

    /// Moves the bar to `done` and shows `message` on it.
    pub fn set(&mut self, done: u64, message: String) {
        self.advance(done, &message);
        self.bar.set_message(message);
    }

    /// Moves the bar to `done`; `line` is shown only if there is no bar.
    pub fn advance(&mut self, done: u64, line: impl Display) {
        self.bar.set_position(done);
        if self.bar.is_hidden() && self.last_line.elapsed() > LINES {
            note(format_args!("{done}: {line}"));
            self.last_line = Instant::now();
        }
    }

    /// Removes the bar.
    pub fn clear(&self) {
        self.bar.finish_and_clear();
    }
}
