//! Drawing of the dataset's images.

use anyhow::{Context, bail};
use image::{DynamicImage, Rgb, RgbImage, Rgba, RgbaImage, imageops};
use kontext::image;
use resvg::{tiny_skia, usvg};

use super::key::{BACKGROUNDS, Change, Key, Style, TONES};
use super::packages::Packages;

/// Draws an image of the dataset at `size` x `size`.
pub(super) fn draw(key: &Key, packages: &Packages, size: u32) -> anyhow::Result<RgbImage> {
    let name = format!("{}{}", key.slug, TONES[usize::from(key.tone)].1);
    let emoji = match key.style {
        Style::ThreeD => {
            let code = packages
                .codes
                .get(&(key.slug.clone(), key.tone))
                .context("no code points")?;
            three_d(packages.three_d.get(code).context("no 3D picture")?, size)?
        }
        Style::Flat => svg(packages.flat.get(&name).context("no flat picture")?, size)?,
        Style::Contrast => svg(packages.contrast.get(&name).context("no picture")?, size)?,
    };
    let background = if let Change::Background(index) = key.change {
        BACKGROUNDS[index].1
    } else {
        [255; 3]
    };
    let image = over(&emoji, background);
    Ok(match key.change {
        Change::None | Change::Background(_) => image,
        Change::Mirror => imageops::flip_horizontal(&image),
        Change::Turn(1) => imageops::rotate90(&image),
        Change::Turn(2) => imageops::rotate180(&image),
        Change::Turn(_) => imageops::rotate270(&image),
        Change::Grey => map_colours(image, |[r, g, b]| [0.299 * r + 0.587 * g + 0.114 * b; 3]),
        Change::Invert => map_colours(image, |[r, g, b]| [255.0 - r, 255.0 - g, 255.0 - b]),
        // The usual sepia matrix.
        Change::Sepia => map_colours(image, |[r, g, b]| {
            [
                0.393 * r + 0.769 * g + 0.189 * b,
                0.349 * r + 0.686 * g + 0.168 * b,
                0.272 * r + 0.534 * g + 0.131 * b,
            ]
        }),
    })
}

fn three_d(webp: &[u8], size: u32) -> anyhow::Result<RgbaImage> {
    let image = image::load_from_memory(webp)?;
    // Some are slightly taller than wide: they are centred on a square.
    let side = image.width().max(image.height());
    let mut square = RgbaImage::new(side, side);
    let (x, y) = ((side - image.width()) / 2, (side - image.height()) / 2);
    imageops::overlay(&mut square, &image.to_rgba8(), i64::from(x), i64::from(y));
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
        Some(image) => Ok(image),
        None => bail!("the picture is not {size}x{size}"),
    }
}

/// Composites an image over a background.
fn over(image: &RgbaImage, background: [u8; 3]) -> RgbImage {
    let mix = |&Rgba([r, g, b, alpha]): &Rgba<u8>| {
        let alpha = f32::from(alpha) / 255.0;
        let blend = |c: u8, g: u8| (f32::from(c) * alpha + f32::from(g) * (1.0 - alpha)).round() as u8;
        Rgb([
            blend(r, background[0]),
            blend(g, background[1]),
            blend(b, background[2]),
        ])
    };
    RgbImage::from_fn(image.width(), image.height(), |x, y| mix(image.get_pixel(x, y)))
}

/// Maps the colour of each pixel.
fn map_colours(mut image: RgbImage, map: impl Fn([f32; 3]) -> [f32; 3]) -> RgbImage {
    for Rgb(pixel) in image.pixels_mut() {
        *pixel = map(pixel.map(f32::from)).map(|c| c.round().clamp(0.0, 255.0) as u8);
    }
    image
}
