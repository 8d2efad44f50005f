//! Options of the programs that say where an image is repainted.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::str::FromStr;

use anyhow::{Context, bail};
use clap::{Args, ValueEnum};
use kontext::image::RgbImage;
use kontext::{Mask, MaskContext, Outpaint, Request, Size};

/// Options of a mask, of outpainting, and of registration.
#[derive(Debug, Default, Args)]
pub struct MaskArgs {
    /// Repaint only what is white in this image, of the size of the first --image; grey in part
    #[arg(long, value_name = "FILE")]
    pub mask: Option<PathBuf>,
    /// Repaint only this rectangle, in pixels of the first --image
    #[arg(long, value_name = "LEFT,TOP,WIDTH,HEIGHT", conflicts_with = "mask")]
    pub mask_box: Option<Numbers<4>>,
    /// Repaint only this polygon: corners "x,y x,y x,y …" in pixels of the first --image
    #[arg(long, value_name = "CORNERS", conflicts_with_all = ["mask", "mask_box"])]
    pub mask_polygon: Option<Corners>,
    /// Repaint what a program finds: it gets the paths of a PNG to read and of a PNG to write, a mask of its size
    #[arg(long, value_name = "COMMAND", conflicts_with_all = ["mask", "mask_box", "mask_polygon"])]
    pub mask_command: Option<String>,
    /// Pixels by which the mask grows
    #[arg(long, value_name = "PIXELS", allow_negative_numbers = true)]
    pub mask_grow: Option<f32>,
    /// Pixels around it over which result and source are mixed; 8 if not given
    #[arg(long, value_name = "PIXELS", allow_negative_numbers = true)]
    pub mask_feather: Option<f32>,
    /// Images that the model sees; all if not given
    #[arg(long, value_enum, value_name = "IMAGES")]
    pub mask_context: Option<ContextArg>,
    /// Work on the region around the mask or the padding, with these pixels more on each side, so that a large image
    /// keeps its sharpness in it
    #[arg(long, value_name = "MARGIN")]
    pub crop: Option<u32>,
    /// Continue the first --image beyond its sides: to a ratio, 16:9, or by pixels LEFT,TOP,RIGHT,BOTTOM
    #[arg(long, value_name = "RATIO|PIXELS")]
    pub outpaint: Option<Sides>,
    /// Pixels of the old image over which it is mixed with its continuation; at most 40 if not given
    #[arg(long, value_name = "PIXELS", requires = "outpaint")]
    pub outpaint_feather: Option<u32>,
    /// Measure the shift and the zoom of the result against the first --image, and undo them
    #[arg(long)]
    pub register: bool,
}

/// Values of `--mask-context`; see [`MaskContext`].
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum ContextArg {
    /// The repainted one
    Source,
    /// Those after it
    References,
    /// All
    Both,
}

/// Whole numbers, separated by commas.
#[derive(Debug, Clone, Copy)]
pub struct Numbers<const N: usize>([u32; N]);

impl<const N: usize> FromStr for Numbers<N> {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let numbers: Option<Vec<u32>> = text.split(',').map(|part| part.trim().parse().ok()).collect();
        let numbers = numbers.and_then(|numbers| numbers.try_into().ok());
        numbers
            .map(Self)
            .ok_or_else(|| format!("expected {N} whole numbers, separated by commas"))
    }
}

/// Corners of a polygon.
#[derive(Debug, Clone)]
pub struct Corners(Vec<[f32; 2]>);

impl FromStr for Corners {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let corner = |corner: &str| {
            let (x, y) = corner.split_once(',')?;
            Some([x.trim().parse().ok()?, y.trim().parse().ok()?])
        };
        let corners: Option<Vec<_>> = text.split_whitespace().map(corner).collect();
        corners.map(Self).ok_or("expected corners x,y, separated by spaces")
    }
}

/// Value of `--outpaint`.
#[derive(Debug, Clone, Copy)]
pub struct Sides(Outpaint);

impl FromStr for Sides {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let ratio = |(width, height): (&str, &str)| Some(Outpaint::ratio(width.parse().ok()?, height.parse().ok()?));
        let sides = || {
            let Numbers([left, top, right, bottom]) = text.parse().ok()?;
            Some(Outpaint::sides(left, top, right, bottom))
        };
        let outpaint = text.split_once(':').and_then(ratio).or_else(sides);
        outpaint
            .map(Self)
            .ok_or("expected a ratio such as 16:9, or pixels LEFT,TOP,RIGHT,BOTTOM")
    }
}

impl MaskArgs {
    /// Returns `true` if no option is given.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        !self.has_mask() && self.outpaint.is_none() && !self.register && self.settings().is_none()
    }

    /// Returns the files that the options read.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        self.mask.as_deref().into_iter()
    }

    fn has_mask(&self) -> bool {
        self.mask.is_some() || self.mask_box.is_some() || self.mask_polygon.is_some() || self.mask_command.is_some()
    }

    /// Returns the name of a setting of a mask that is given.
    fn settings(&self) -> Option<&'static str> {
        let given = [
            ("--mask-grow", self.mask_grow.is_some()),
            ("--mask-feather", self.mask_feather.is_some()),
            ("--mask-context", self.mask_context.is_some()),
            ("--crop", self.crop.is_some()),
        ];
        given.into_iter().find_map(|(name, given)| given.then_some(name))
    }

    /// Sets these options in a request.
    ///
    /// # Errors
    /// If the mask cannot be made, or settings are given without one.
    pub fn apply(&self, mut request: Request) -> anyhow::Result<Request> {
        request.register |= self.register;
        if let Some(Sides(mut outpaint)) = self.outpaint {
            outpaint.feather = self.outpaint_feather;
            outpaint.crop = self.crop;
            request = request.outpaint(outpaint);
        }
        if let Some(name) = self
            .settings()
            .filter(|name| !self.has_mask() && (self.outpaint.is_none() || *name != "--crop"))
        {
            bail!("{name} is of a mask; add --mask, --mask-box, --mask-polygon or --mask-command, or leave it out");
        }
        let Some(image) = request.images.first().filter(|_| self.has_mask()) else {
            return Ok(request);
        };
        let mut mask = self.mask_of(image)?;
        let settings = &mut mask.settings;
        settings.grow = self.mask_grow.unwrap_or(settings.grow);
        settings.feather = self.mask_feather;
        settings.crop = self.crop;
        settings.context = self.mask_context.map(|context| match context {
            ContextArg::Source => MaskContext::Source,
            ContextArg::References => MaskContext::References,
            ContextArg::Both => MaskContext::Both,
        });
        Ok(request.mask(mask))
    }

    fn mask_of(&self, image: &RgbImage) -> anyhow::Result<Mask> {
        let size = Size::new(image.width(), image.height());
        if let Some(path) = &self.mask {
            return Ok(Mask::new(kontext::io::open_mask(path)?));
        }
        if let Some(Numbers(rectangle)) = self.mask_box {
            return Ok(Mask::rectangle(size, rectangle)?);
        }
        if let Some(Corners(corners)) = &self.mask_polygon {
            return Ok(Mask::polygon(size, corners)?);
        }
        let command = self.mask_command.as_deref().unwrap_or_default();
        segmented(command, image).with_context(|| format!("--mask-command {command:?}"))
    }
}

/// Asks a program for the mask of an image.
fn segmented(command: &str, image: &RgbImage) -> anyhow::Result<Mask> {
    let words = shlex::split(command).filter(|words| !words.is_empty());
    let words = words.context("expected a program and its arguments, with balanced quotes")?;
    let (program, arguments) = words.split_first().context("expected a program")?;
    let folder = tempfile::tempdir().context("cannot create a temporary folder")?;
    let [source, mask] = ["image.png", "mask.png"].map(|name| folder.path().join(name));
    kontext::io::save_image(image, &source, &[])?;
    let status = Command::new(program)
        .args(arguments)
        .args([&source, &mask])
        .status()
        .with_context(|| format!("cannot start {program}; install it, or name its path"))?;
    if !status.success() {
        bail!("it ended with {status}; run it by hand with two paths to see why");
    }
    let segmenter = |_: &RgbImage| kontext::io::open_mask(&mask);
    Mask::segmented(image, &segmenter).context("it has to write a mask of the image's size to its last argument")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_read_and_others_refused_with_an_example() {
        assert_eq!("1, 2,3,4".parse::<Numbers<4>>().unwrap().0, [1, 2, 3, 4]);
        assert!("1,2,3".parse::<Numbers<4>>().unwrap_err().contains("4 whole numbers"));
        assert_eq!(
            "0,0 9.5,0 0,9".parse::<Corners>().unwrap().0,
            [[0.0, 0.0], [9.5, 0.0], [0.0, 9.0]]
        );
        assert!("0 0".parse::<Corners>().is_err());
        assert_eq!("16:9".parse::<Sides>().unwrap().0, Outpaint::ratio(16, 9));
        assert_eq!("1,2,3,4".parse::<Sides>().unwrap().0, Outpaint::sides(1, 2, 3, 4));
        assert!("wide".parse::<Sides>().unwrap_err().contains("16:9"));
    }

    #[test]
    fn a_setting_without_a_mask_is_named() {
        let args = MaskArgs {
            mask_grow: Some(3.0),
            ..MaskArgs::default()
        };
        let error = args.apply(Request::edit(RgbImage::new(8, 8), "")).unwrap_err();
        assert!(error.to_string().starts_with("--mask-grow is of a mask"), "{error}");
    }

    #[test]
    #[cfg(unix)]
    fn a_program_that_makes_no_mask_is_an_error_that_names_it() {
        let image = RgbImage::new(8, 8);
        for (command, words) in [
            ("", "a program and its arguments"),
            ("/absent/program", "cannot start /absent/program"),
            ("false", "exit status: 1"),
            ("true", "it has to write a mask"),
        ] {
            let args = MaskArgs {
                mask_command: Some(command.to_owned()),
                ..MaskArgs::default()
            };
            let error = args.apply(Request::edit(&image, "")).unwrap_err();
            assert!(format!("{error:#}").contains(words), "{command}: {error:#}");
        }
        // A copy of a grey image is a mask of its size.
        let grey = RgbImage::from_pixel(8, 8, kontext::image::Rgb([200; 3]));
        assert_eq!(segmented("cp", &grey).unwrap().pixels.get_pixel(3, 3).0[0], 200);
    }
}
