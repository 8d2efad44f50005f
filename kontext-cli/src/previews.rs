//! Previews of a run, in a file and in the terminal.

use std::fmt::Display;
use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgGroup, Args};
use kontext::image::RgbImage;
use kontext::{Event, PipelineBuilder, Preview, PreviewMethod, Request};
use kontext_core::images::resize;

use crate::progress::above;
use crate::terminal::Screen;

/// Largest side of a shown preview, in pixels.
const LARGEST: u32 = 512;

/// Options of the previews of a run.
#[derive(Debug, Clone, Args)]
#[command(group(ArgGroup::new("shown").multiple(true)))]
pub struct PreviewArgs {
    /// Write the newest preview of the first image to this file during the run: .png, .jpg or .webp
    #[arg(long, value_name = "FILE", group = "shown")]
    pub preview: Option<PathBuf>,
    /// Show previews in the terminal: as pictures in Kitty, Ghostty, WezTerm and iTerm2, else in coloured blocks
    #[arg(long, group = "shown")]
    pub preview_terminal: bool,
    /// Colours of the previews: auto, tiny (a tiny autoencoder), fitted, comfyui or sdcpp
    #[arg(long, value_name = "METHOD", default_value_t, requires = "shown")]
    pub preview_method: PreviewMethod,
    /// Least time between two previews in seconds; 0 for each step
    #[arg(long, value_name = "SECONDS", default_value = "0.7", value_parser = seconds, allow_negative_numbers = true, requires = "shown")]
    pub preview_every: Duration,
    /// A tiny autoencoder of the model's latents, such as TAEF1; without it, that in the folder preview_decoder of the
    /// model's
    #[arg(long, value_name = "PATH", requires = "shown")]
    pub preview_decoder: Option<PathBuf>,
}

impl PreviewArgs {
    /// Returns `true` if previews are asked for.
    fn are_shown(&self) -> bool {
        self.preview.is_some() || self.preview_terminal
    }

    /// Sets the previews of a request.
    #[must_use]
    pub fn request(&self, mut request: Request) -> Request {
        let preview = Preview::default().method(self.preview_method).every(self.preview_every);
        request.preview = self.are_shown().then_some(preview);
        request
    }

    /// Sets the tiny autoencoder in a builder.
    pub fn builder(&self, builder: PipelineBuilder) -> PipelineBuilder {
        match &self.preview_decoder {
            Some(path) => builder.preview_decoder(path),
            None => builder,
        }
    }

    /// Returns what shows the previews of a run. Warns if the terminal cannot.
    pub(crate) fn display(&self) -> PreviewDisplay {
        let screen = self.preview_terminal.then(Screen::of_stderr);
        let screen = screen.and_then(|screen| screen.map_err(|reason| warn_once(&mut false, reason)).ok());
        PreviewDisplay {
            file: self.preview.clone(),
            screen,
            largest: LARGEST,
            warned: false,
        }
    }
}

/// Parses a time in seconds.
fn seconds(text: &str) -> Result<Duration, &'static str> {
    let number = text.parse().ok();
    let time = number.and_then(|seconds: f64| Duration::try_from_secs_f64(seconds).ok());
    time.ok_or("expected a number of seconds from 0")
}

/// The file and the terminal that show previews.
pub(crate) struct PreviewDisplay {
    file: Option<PathBuf>,
    screen: Option<Screen>,
    /// Largest side in pixels of a preview of this run.
    largest: u32,
    warned: bool,
}

impl PreviewDisplay {
    /// Shows the event if it is a preview. A failure is a warning, the first time: the run goes on.
    pub(crate) fn observe(&mut self, event: &Event<'_>) {
        match event {
            Event::Planned { plan, .. } => {
                let size = plan.target.size();
                self.largest = size.width.max(size.height).min(LARGEST);
            }
            Event::Preview { image, .. } => {
                if let Err(error) = self.show(image) {
                    warn_once(&mut self.warned, error);
                }
            }
            _ => {}
        }
    }

    fn show(&mut self, image: &RgbImage) -> kontext::Result<()> {
        // A preview of one pixel a latent is small.
        let longest = image.width().max(image.height()).max(1);
        let side = |side: u32| (side * self.largest).div_ceil(longest).max(1);
        let image = &resize(image, side(image.width()), side(image.height()))?;
        if let Some(screen) = &mut self.screen {
            screen.show(image)?;
        }
        match &self.file {
            Some(file) => kontext::io::save_image(image, file, &[]),
            None => Ok(()),
        }
    }
}

fn warn_once(warned: &mut bool, reason: impl Display) {
    if !std::mem::replace(warned, true) {
        above(format_args!("warning: no preview: {reason}"));
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Program {
        #[command(flatten)]
        previews: PreviewArgs,
    }

    fn parsed(words: &[&str]) -> Result<PreviewArgs, String> {
        let program = Program::try_parse_from([&["program"], words].concat());
        program
            .map(|program| program.previews)
            .map_err(|error| error.to_string())
    }

    #[test]
    fn a_request_has_previews_if_they_are_shown() {
        let preview = |words: &[&str]| parsed(words).unwrap().request(Request::default()).preview;
        assert_eq!(preview(&[]), None);
        assert_eq!(preview(&["--preview", "a.png"]), Some(Preview::default()));
        let both = [
            "--preview",
            "a.png",
            "--preview-terminal",
            "--preview-every",
            "0",
            "--preview-method",
            "tiny",
        ];
        let every = Preview::default().every(Duration::ZERO).method(PreviewMethod::Tiny);
        assert_eq!(preview(&both), Some(every));
        assert!(parsed(&["--preview-method", "tiny"]).is_err());
        for text in ["-1", "NaN", "1e30", "soon"] {
            let error = parsed(&["--preview-terminal", "--preview-every", text]).unwrap_err();
            assert!(error.contains("expected a number of seconds from 0"), "{error}");
        }
    }

    #[test]
    fn a_file_has_the_newest_preview_enlarged_and_a_failure_does_not_stop_the_run() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("p.png");
        let mut display = parsed(&["--preview", file.to_str().unwrap()]).unwrap().display();
        display.largest = 128;
        let show = |display: &mut PreviewDisplay, image: &RgbImage| {
            display.observe(&Event::Preview {
                done: 1,
                total: 2,
                image,
            });
        };
        for level in [9, 200] {
            show(
                &mut display,
                &RgbImage::from_pixel(16, 12, kontext::image::Rgb([level; 3])),
            );
            let image = kontext::open_image(&file).unwrap();
            assert_eq!((image.dimensions(), image.get_pixel(5, 5).0), ((128, 96), [level; 3]));
        }
        display.file = Some(folder.path().join("absent/p.png"));
        show(&mut display, &RgbImage::new(16, 12));
        assert!(display.warned);
    }
}
