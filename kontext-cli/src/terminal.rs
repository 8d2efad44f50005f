//! Pictures in a terminal: by the protocols of Kitty and iTerm2, or in blocks of two colours.

use std::fmt::Write as _;
use std::io::{IsTerminal, Write};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use kontext::image::{ImageFormat, RgbImage};
use kontext_core::images::resize;
use kontext_core::{Error, Result};

use crate::progress;

/// Lines of the terminal that a picture takes.
const ROWS: u32 = 16;
/// Most columns of a picture in blocks, which are half as wide as high.
const COLUMNS: u32 = 64;
/// Bytes of a piece of Kitty's protocol.
const PIECE: usize = 4096;

/// The way in which a terminal shows pictures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Protocol {
    /// Source: sw.kovidgoyal.net/kitty/graphics-protocol.
    Kitty,
    /// Source: iterm2.com/documentation-images.html.
    Iterm,
    /// Upper half blocks, in 24-bit colours.
    Blocks,
}

/// Lines of a terminal in which one picture replaces the other.
#[derive(Debug)]
pub(crate) struct Screen {
    protocol: Protocol,
    begun: bool,
}

impl Screen {
    /// Returns the screen of standard error; the reason, if it shows no pictures.
    pub(crate) fn of_stderr() -> std::result::Result<Self, &'static str> {
        if !std::io::stderr().is_terminal() {
            return Err("standard error is no terminal; leave out --preview-terminal, and add --preview FILE");
        }
        let protocol = protocol(&|name| std::env::var(name).ok());
        let begun = false;
        let screen = protocol.map(|protocol| Self { protocol, begun });
        screen.ok_or("this terminal is not known to show pictures or 24-bit colours; add --preview FILE")
    }

    /// Shows a picture in the place of the one before.
    pub(crate) fn show(&mut self, image: &RgbImage) -> Result<()> {
        let picture = picture(image, self.protocol)?;
        let room = if std::mem::replace(&mut self.begun, true) {
            String::new()
        } else {
            "\n".repeat(ROWS as usize)
        };
        let text = format!("{room}\x1b[{ROWS}A\r\x1b7{picture}\x1b8\x1b[{ROWS}B\r");
        let mut written = Ok(());
        progress::between(|| written = std::io::stderr().write_all(text.as_bytes()));
        written.map_err(Error::io("standard error"))
    }
}

/// Returns the best protocol of the terminal that environment variables describe.
fn protocol(variable: &dyn Fn(&str) -> Option<String>) -> Option<Protocol> {
    let value = |name: &str| variable(name).unwrap_or_default();
    let (term, program) = (value("TERM"), value("TERM_PROGRAM"));
    let colours = ["truecolor", "24bit"].contains(&value("COLORTERM").as_str());
    let blocks = colours.then_some(Protocol::Blocks);
    // Multiplexers keep the variables of the terminal around them, and pass on no pictures.
    if variable("TMUX").is_some() || term.starts_with("screen") || term.starts_with("tmux") {
        return blocks;
    }
    if variable("KITTY_WINDOW_ID").is_some()
        || term.contains("kitty")
        || term.contains("ghostty")
        || program == "ghostty"
    {
        return Some(Protocol::Kitty);
    }
    if ["iTerm.app", "WezTerm"].contains(&program.as_str()) || value("LC_TERMINAL") == "iTerm2" {
        return Some(Protocol::Iterm);
    }
    blocks
}

/// Returns the characters of a picture, from the upper left corner of its place.
fn picture(image: &RgbImage, protocol: Protocol) -> Result<String> {
    let png = || -> Result<String> { Ok(STANDARD.encode(kontext::io::encode_image(image, ImageFormat::Png, &[])?)) };
    Ok(match protocol {
        Protocol::Kitty => kitty(&png()?),
        Protocol::Iterm => {
            let options = format!("inline=1;height={ROWS};preserveAspectRatio=1;doNotMoveCursor=1");
            format!("\x1b]1337;File={options}:{}\x07", png()?)
        }
        Protocol::Blocks => blocks(image)?,
    })
}

/// Image and placement have a fixed number, so that the next picture replaces this one.
fn kitty(encoded: &str) -> String {
    let pieces = encoded.as_bytes().chunks(PIECE);
    let (last, mut text) = (pieces.len().saturating_sub(1), String::new());
    for (number, piece) in pieces.enumerate() {
        let options = if number == 0 {
            format!("a=T,f=100,i=1783,p=1,r={ROWS},C=1,q=2,")
        } else {
            String::new()
        };
        let (more, piece) = (u8::from(number < last), String::from_utf8_lossy(piece));
        // Writing to a string cannot fail.
        let _ = write!(text, "\x1b_G{options}m={more};{piece}\x1b\\");
    }
    text
}

fn blocks(image: &RgbImage) -> Result<String> {
    let (width, height) = (f64::from(image.width().max(1)), f64::from(image.height().max(1)));
    let scale = (f64::from(2 * ROWS) / height).min(f64::from(COLUMNS) / width);
    let columns = ((width * scale).round() as u32).clamp(1, COLUMNS);
    let rows = ((height * scale / 2.0).round() as u32).clamp(1, ROWS);
    let small = resize(image, columns, 2 * rows)?;
    let mut text = String::new();
    for row in 0..rows {
        for column in 0..columns {
            let [r, g, b] = small.get_pixel(column, 2 * row).0;
            let [red, green, blue] = small.get_pixel(column, 2 * row + 1).0;
            let _ = write!(text, "\x1b[38;2;{r};{g};{b};48;2;{red};{green};{blue}m▀");
        }
        text.push_str("\x1b[0m\x1b[K\x1b[B\r");
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use kontext::image::Rgb;

    use super::*;

    fn of(variables: &[(&str, &str)]) -> Option<Protocol> {
        let find = |name: &str| variables.iter().find(|(known, _)| *known == name);
        protocol(&|name| find(name).map(|(_, value)| (*value).to_owned()))
    }

    #[test]
    fn the_protocol_is_that_of_the_terminal_and_blocks_in_a_multiplexer() {
        let colours = ("COLORTERM", "truecolor");
        assert_eq!(of(&[("KITTY_WINDOW_ID", "1")]), Some(Protocol::Kitty));
        assert_eq!(of(&[("TERM", "xterm-ghostty")]), Some(Protocol::Kitty));
        assert_eq!(of(&[("TERM_PROGRAM", "WezTerm"), colours]), Some(Protocol::Iterm));
        assert_eq!(of(&[("TERM", "xterm-256color"), colours]), Some(Protocol::Blocks));
        assert_eq!(
            of(&[("KITTY_WINDOW_ID", "1"), ("TMUX", "a"), colours]),
            Some(Protocol::Blocks)
        );
        assert_eq!(of(&[("TERM", "dumb")]), None);
        assert_eq!(of(&[]), None);
    }

    #[test]
    fn blocks_are_two_pixels_high_in_the_pictures_proportions() {
        let image = RgbImage::from_fn(64, 32, |_, y| Rgb(if y < 16 { [250, 0, 0] } else { [0, 0, 250] }));
        let text = blocks(&image).unwrap();
        let lines: Vec<&str> = text.split_terminator("\x1b[B\r").collect();
        assert_eq!(lines.len(), 16);
        assert!(lines.iter().all(|line| line.matches('▀').count() == 64));
        assert!(
            lines[0].starts_with("\x1b[38;2;250;0;0;48;2;250;0;0m▀"),
            "{:?}",
            lines[0]
        );
        assert!(lines[15].contains("48;2;0;0;250m"));
        // A tall one is as high as the place, a wide one as wide.
        let size = |width, height| {
            let text = blocks(&RgbImage::new(width, height)).unwrap();
            (text.matches('▀').count(), text.matches("\x1b[B").count())
        };
        assert_eq!((size(100, 200), size(400, 100)), ((16 * 16, 16), (64 * 8, 8)));
    }

    #[test]
    fn a_picture_of_kitty_is_sent_in_pieces_and_one_of_iterm_whole() {
        let long = "A".repeat(2 * PIECE + 5);
        let text = kitty(&long);
        let pieces: Vec<&str> = text.split_terminator("\x1b\\").collect();
        assert_eq!(pieces.len(), 3);
        assert!(pieces[0].starts_with("\x1b_Ga=T,f=100,") && pieces[0].contains(",m=1;AAAA"));
        assert!(pieces[1].starts_with("\x1b_Gm=1;") && pieces[2] == "\x1b_Gm=0;AAAAA");
        let text = picture(&RgbImage::new(4, 4), Protocol::Iterm).unwrap();
        let encoded = text.split_once(':').unwrap().1.strip_suffix('\x07').unwrap();
        let image = kontext::image_from_bytes(&STANDARD.decode(encoded).unwrap()).unwrap();
        assert_eq!(image, RgbImage::new(4, 4));
    }
}
