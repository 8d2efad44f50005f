//! One picture of the dataset: which emoji, in which style, changed how; and how it is drawn.

use anyhow::{Context, bail};
use image::{DynamicImage, Rgb, RgbImage, Rgba, RgbaImage, imageops};
use kontext::image;
use resvg::{tiny_skia, usvg};

use super::packages::Packages;

/// The three styles of the collection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Style {
    ThreeD,
    Flat,
    Contrast,
}

impl Style {
    pub const ALL: [Style; 3] = [Style::ThreeD, Style::Flat, Style::Contrast];

    /// As instructions call it.
    pub fn words(self) -> &'static str {
        match self {
            Style::ThreeD => "3d",
            Style::Flat => "flat",
            Style::Contrast => "high contrast",
        }
    }

    fn folder(self) -> &'static str {
        match self {
            Style::ThreeD => "3d",
            Style::Flat => "flat",
            Style::Contrast => "contrast",
        }
    }
}

/// Skin tones as instructions call them, and as file names end.
pub const TONES: [(&str, &str); 6] = [
    ("yellow", ""),
    ("light", "-light"),
    ("medium light", "-medium-light"),
    ("medium", "-medium"),
    ("medium dark", "-medium-dark"),
    ("dark", "-dark"),
];

/// Grounds that pictures may have beside white.
pub const GROUNDS: [(&str, [u8; 3]); 6] = [
    ("red", [220, 60, 50]),
    ("green", [70, 170, 80]),
    ("blue", [60, 110, 220]),
    ("yellow", [250, 215, 70]),
    ("pink", [245, 160, 190]),
    ("black", [25, 25, 25]),
];

/// A change of the whole picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Change {
    None,
    Grey,
    Sepia,
    Invert,
    /// Another ground: an index of [`GROUNDS`].
    Ground(usize),
    Mirror,
    /// Quarter turns clockwise.
    Turn(u8),
}

impl Change {
    /// Everything but no change.
    pub fn all() -> Vec<Self> {
        let mut all = vec![Self::Grey, Self::Sepia, Self::Invert, Self::Mirror];
        all.extend((0..GROUNDS.len()).map(Self::Ground));
        all.extend((1..4).map(Self::Turn));
        all
    }

    fn suffix(self) -> String {
        match self {
            Self::None => String::new(),
            Self::Grey => "~grey".to_owned(),
            Self::Sepia => "~sepia".to_owned(),
            Self::Invert => "~inverted".to_owned(),
            Self::Ground(index) => format!("~on-{}", GROUNDS[index].0),
            Self::Mirror => "~mirrored".to_owned(),
            Self::Turn(turns) => format!("~turned-{}", 90 * u32::from(turns)),
        }
    }
}

/// One picture.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    pub style: Style,
    /// The emoji's name without its tone: "woman-firefighter".
    pub slug: String,
    /// An index of [`TONES`].
    pub tone: u8,
    pub change: Change,
}

impl Key {
    pub fn new(style: Style, slug: &str, tone: u8) -> Self {
        Self {
            style,
            slug: slug.to_owned(),
            tone,
            change: Change::None,
        }
    }

    pub fn changed(&self, change: Change) -> Self {
        Self { change, ..self.clone() }
    }

    /// The skin's tone as it is seen. Files are called as in the packages, of which the 3D one has two tones in each
    /// other's place.
    pub fn tone_words(&self) -> &'static str {
        let tone = match (self.style, self.tone) {
            (Style::ThreeD, 2) => 3,
            (Style::ThreeD, 3) => 2,
            (_, tone) => tone,
        };
        TONES[usize::from(tone)].0
    }

    pub fn styled(&self, style: Style) -> Self {
        Self { style, ..self.clone() }
    }

    /// Its file within the dataset.
    pub fn path(&self) -> String {
        let tone = TONES[usize::from(self.tone)].1;
        format!(
            "pictures/{}/{}{tone}{}.png",
            self.style.folder(),
            self.slug,
            self.change.suffix()
        )
    }

    /// Whether the packages hold it.
    pub fn exists(&self, packages: &Packages) -> bool {
        let name = format!("{}{}", self.slug, TONES[usize::from(self.tone)].1);
        match self.style {
            // Here alone the two tones that the package exchanges are right: a person would change its skin with its work.
            Style::ThreeD if self.slug.ends_with("technologist") && matches!(self.tone, 2 | 3) => false,
            Style::ThreeD => {
                let code = packages.codes.get(&(self.slug.clone(), self.tone));
                code.is_some_and(|code| packages.three_d.contains_key(code))
            }
            Style::Flat => packages.flat.contains_key(&name),
            Style::Contrast => packages.contrast.contains_key(&name),
        }
    }

    /// Draws it at `size` x `size`.
    pub fn draw(&self, packages: &Packages, size: u32) -> anyhow::Result<RgbImage> {
        let name = format!("{}{}", self.slug, TONES[usize::from(self.tone)].1);
        let emoji = match self.style {
            Style::ThreeD => {
                let code = packages
                    .codes
                    .get(&(self.slug.clone(), self.tone))
                    .context("no code points")?;
                three_d(packages.three_d.get(code).context("no 3D picture")?, size)?
            }
            Style::Flat => svg(packages.flat.get(&name).context("no flat picture")?, size)?,
            Style::Contrast => svg(packages.contrast.get(&name).context("no picture")?, size)?,
        };
        let ground = if let Change::Ground(index) = self.change {
            GROUNDS[index].1
        } else {
            [255; 3]
        };
        let picture = over(&emoji, ground);
        Ok(match self.change {
            Change::None | Change::Ground(_) => picture,
            Change::Mirror => imageops::flip_horizontal(&picture),
            Change::Turn(1) => imageops::rotate90(&picture),
            Change::Turn(2) => imageops::rotate180(&picture),
            Change::Turn(_) => imageops::rotate270(&picture),
            Change::Grey => colours(picture, |[r, g, b]| [0.299 * r + 0.587 * g + 0.114 * b; 3]),
            Change::Invert => colours(picture, |[r, g, b]| [255.0 - r, 255.0 - g, 255.0 - b]),
            // The usual sepia matrix.
            Change::Sepia => colours(picture, |[r, g, b]| {
                [
                    0.393 * r + 0.769 * g + 0.189 * b,
                    0.349 * r + 0.686 * g + 0.168 * b,
                    0.272 * r + 0.534 * g + 0.131 * b,
                ]
            }),
        })
    }
}

fn three_d(webp: &[u8], size: u32) -> anyhow::Result<RgbaImage> {
    let picture = image::load_from_memory(webp)?;
    // Some are a little higher than wide: they are set on a square.
    let side = picture.width().max(picture.height());
    let mut square = RgbaImage::new(side, side);
    let (x, y) = ((side - picture.width()) / 2, (side - picture.height()) / 2);
    imageops::overlay(&mut square, &picture.to_rgba8(), i64::from(x), i64::from(y));
    Ok(DynamicImage::from(square)
        .resize_exact(size, size, imageops::FilterType::Lanczos3)
        .to_rgba8())
}

fn svg(text: &str, size: u32) -> anyhow::Result<RgbaImage> {
    let tree = usvg::Tree::from_str(text, &usvg::Options::default())?;
    let mut pixels = tiny_skia::Pixmap::new(size, size).context("no picture of this size")?;
    let scale = size as f32 / tree.size().width().max(tree.size().height());
    resvg::render(
        &tree,
        tiny_skia::Transform::from_scale(scale, scale),
        &mut pixels.as_mut(),
    );
    let straight = pixels.pixels().iter().flat_map(|p| {
        let colour = p.demultiply();
        [colour.red(), colour.green(), colour.blue(), colour.alpha()]
    });
    match RgbaImage::from_raw(size, size, straight.collect()) {
        Some(picture) => Ok(picture),
        None => bail!("the picture is not {size}x{size}"),
    }
}

/// Lays a picture on a ground.
fn over(picture: &RgbaImage, ground: [u8; 3]) -> RgbImage {
    let mix = |&Rgba([r, g, b, alpha]): &Rgba<u8>| {
        let alpha = f32::from(alpha) / 255.0;
        let blend = |c: u8, g: u8| (f32::from(c) * alpha + f32::from(g) * (1.0 - alpha)).round() as u8;
        Rgb([blend(r, ground[0]), blend(g, ground[1]), blend(b, ground[2])])
    };
    RgbImage::from_fn(picture.width(), picture.height(), |x, y| mix(picture.get_pixel(x, y)))
}

fn colours(mut picture: RgbImage, map: impl Fn([f32; 3]) -> [f32; 3]) -> RgbImage {
    for Rgb(pixel) in picture.pixels_mut() {
        *pixel = map(pixel.map(f32::from)).map(|c| c.round().clamp(0.0, 255.0) as u8);
    }
    picture
}
