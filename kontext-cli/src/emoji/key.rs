//! The key of an image in the dataset: an emoji, its style, its tone and its change.

use super::packages::Packages;

/// The three styles of the collection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Style {
    ThreeD,
    Flat,
    Contrast,
}

impl Style {
    pub(super) const ALL: [Style; 3] = [Style::ThreeD, Style::Flat, Style::Contrast];

    /// Its name in instructions.
    pub(super) fn words(self) -> &'static str {
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

/// Skin tones: names in instructions, and suffixes of file names.
pub(super) const TONES: [(&str, &str); 6] = [
    ("yellow", ""),
    ("light", "-light"),
    ("medium light", "-medium-light"),
    ("medium", "-medium"),
    ("medium dark", "-medium-dark"),
    ("dark", "-dark"),
];

/// Backgrounds other than white.
pub(super) const BACKGROUNDS: [(&str, [u8; 3]); 6] = [
    ("red", [220, 60, 50]),
    ("green", [70, 170, 80]),
    ("blue", [60, 110, 220]),
    ("yellow", [250, 215, 70]),
    ("pink", [245, 160, 190]),
    ("black", [25, 25, 25]),
];

/// A change of the whole image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Change {
    None,
    Grey,
    Sepia,
    Invert,
    /// Another background: an index of [`BACKGROUNDS`].
    Background(usize),
    Mirror,
    /// Quarter turns clockwise.
    Turn(u8),
}

impl Change {
    /// Returns all changes except `None`.
    pub(super) fn all() -> Vec<Self> {
        let mut all = vec![Self::Grey, Self::Sepia, Self::Invert, Self::Mirror];
        all.extend((0..BACKGROUNDS.len()).map(Self::Background));
        all.extend((1..4).map(Self::Turn));
        all
    }

    fn suffix(self) -> String {
        match self {
            Self::None => String::new(),
            Self::Grey => "~grey".to_owned(),
            Self::Sepia => "~sepia".to_owned(),
            Self::Invert => "~inverted".to_owned(),
            Self::Background(index) => format!("~on-{}", BACKGROUNDS[index].0),
            Self::Mirror => "~mirrored".to_owned(),
            Self::Turn(turns) => format!("~turned-{}", 90 * u32::from(turns)),
        }
    }
}

/// An image of the dataset.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Key {
    pub(super) style: Style,
    /// The emoji's name without its tone: "woman-firefighter".
    pub(super) slug: String,
    /// An index of [`TONES`].
    pub(super) tone: u8,
    pub(super) change: Change,
}

impl Key {
    pub(super) fn new(style: Style, slug: &str, tone: u8) -> Self {
        Self {
            style,
            slug: slug.to_owned(),
            tone,
            change: Change::None,
        }
    }

    pub(super) fn changed(&self, change: Change) -> Self {
        Self { change, ..self.clone() }
    }

    /// Returns the name of the tone shown. Files are named as in the packages, and the 3D package exchanges two tones.
    pub(super) fn tone_words(&self) -> &'static str {
        let tone = match (self.style, self.tone) {
            (Style::ThreeD, 2) => 3,
            (Style::ThreeD, 3) => 2,
            (_, tone) => tone,
        };
        TONES[usize::from(tone)].0
    }

    pub(super) fn styled(&self, style: Style) -> Self {
        Self { style, ..self.clone() }
    }

    /// Returns its path within the dataset.
    pub(super) fn path(&self) -> String {
        let tone = TONES[usize::from(self.tone)].1;
        format!(
            "pictures/{}/{}{tone}{}.png",
            self.style.folder(),
            self.slug,
            self.change.suffix()
        )
    }

    /// Returns `true` if the packages contain it.
    pub(super) fn exists(&self, packages: &Packages) -> bool {
        let name = format!("{}{}", self.slug, TONES[usize::from(self.tone)].1);
        match self.style {
            // Only these have the two exchanged tones in their right place: a change of occupation would change the tone.
            Style::ThreeD if self.slug.ends_with("technologist") && matches!(self.tone, 2 | 3) => false,
            Style::ThreeD => {
                let code = packages.codes.get(&(self.slug.clone(), self.tone));
                code.is_some_and(|code| packages.three_d.contains_key(code))
            }
            Style::Flat => packages.flat.contains_key(&name),
            Style::Contrast => packages.contrast.contains_key(&name),
        }
    }
}
