//! Means over all images, with one row per autoencoder.

use std::fmt::{self, Write as _};

use kontext_core::Result;

use super::row::with_error;
use super::{Measurement, PUBLISHED, PUBLISHED_IMAGES, PUBLISHED_SIDE, Published, Row};
use crate::cell;
use crate::metrics::{Backbone, Perceptual};
use crate::statistics::Summary;

/// The two distances of a table, by their networks.
#[derive(Debug, Clone, Copy, Default)]
pub struct Distances<'a> {
    /// That of [`Row::pdist`].
    pub perceptual: Option<&'a Perceptual>,
    /// That of [`Row::cosine`].
    pub cosine: Option<&'a Perceptual>,
}

/// A table of means; `Display` formats it as text for a terminal.
///
/// A distance by cosines has a column of its own. If its network is VGG16, the rows of [`PUBLISHED`] are shown below
/// the measured ones, in the same columns.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Table {
    rows: Vec<Row>,
    /// Name of the network of `pdist`.
    perceptual: Option<String>,
    /// Name of the network of `cosine`.
    cosine: Option<String>,
    published: &'static [Published],
}

impl Table {
    /// Summarises measurements, with autoencoders in order of first appearance.
    ///
    /// # Errors
    /// [`kontext_core::Error::InvalidArgument`] if a measurement is not finite.
    pub fn of(measurements: &[Measurement], networks: Distances<'_>) -> Result<Self> {
        let mut names: Vec<&str> = Vec::new();
        for measurement in measurements {
            if !names.contains(&measurement.vae.as_str()) {
                names.push(&measurement.vae);
            }
        }
        let rows: Vec<Row> = names
            .into_iter()
            .map(|name| Row::of(name, measurements))
            .collect::<Result<_>>()?;
        let name = |network: Option<&Perceptual>, has: fn(&Row) -> bool| {
            let network = network.filter(|_| rows.iter().any(has))?;
            Some(network.name().to_owned())
        };
        let perceptual = name(networks.perceptual, |row| row.pdist.is_some());
        let cosine = name(networks.cosine, |row| row.cosine.is_some());
        let is_vgg16 = |network: &Perceptual| network.features().backbone() == Backbone::Vgg16;
        let published: &[Published] = match networks.cosine {
            Some(network) if cosine.is_some() && is_vgg16(network) => &PUBLISHED,
            _ => &[],
        };
        Ok(Self {
            rows,
            perceptual,
            cosine,
            published,
        })
    }

    /// Returns the rows.
    #[must_use]
    pub fn rows(&self) -> &[Row] {
        &self.rows
    }

    /// Formats the table as Markdown: means ± standard errors.
    #[must_use]
    pub fn markdown(&self) -> String {
        let cosine = if self.cosine.is_some() {
            " PDist by cosines ↓ |"
        } else {
            ""
        };
        let mut text = format!("| autoencoder | images | PDist ↓ |{cosine} SSIM ↑ | PSNR ↑ |\n");
        let numbers = if self.cosine.is_some() { 5 } else { 4 };
        text.push_str(&format!("| --- |{}\n", " ---: |".repeat(numbers)));
        for cells in self.lines() {
            let cells: Vec<String> = cells.iter().map(|text| cell::markdown(text)).collect();
            // Writing to a string does not fail.
            let _ = writeln!(text, "| {} |", cells.join(" | "));
        }
        for note in self.notes() {
            let _ = writeln!(text, "\n{note}");
        }
        text
    }

    /// Formats the measured rows as CSV, with the columns
    /// `vae,pictures,pdist,pdist_se,ssim,ssim_se,psnr,psnr_se,cosine,cosine_se`; unknown values are empty.
    #[must_use]
    pub fn csv(&self) -> String {
        let number = |value: f64| {
            if value.is_finite() {
                format!("{value:.6}")
            } else {
                String::new()
            }
        };
        let pair = |summary: Option<&Summary>| {
            summary.map_or_else(Default::default, |s| [s.mean, s.standard_error].map(number))
        };
        let mut writer = csv::Writer::from_writer(Vec::new());
        let head = "vae,pictures,pdist,pdist_se,ssim,ssim_se,psnr,psnr_se,cosine,cosine_se".split(',');
        // Writing to memory does not fail.
        let _ = writer.write_record(head);
        for row in &self.rows {
            let numbers = [
                row.pdist.as_ref(),
                Some(&row.ssim),
                Some(&row.psnr),
                row.cosine.as_ref(),
            ]
            .map(pair);
            let facts = [cell::csv(&row.vae).into_owned(), row.psnr.count.to_string()];
            let _ = writer.write_record(facts.iter().chain(numbers.iter().flatten()));
        }
        String::from_utf8(writer.into_inner().unwrap_or_default()).unwrap_or_default()
    }

    /// Returns the cells of each line below the head: measured, then published.
    fn lines(&self) -> Vec<Vec<String>> {
        let distance = |distance: Option<&Summary>| distance.map_or("-".to_owned(), |d| with_error(d, 4));
        let measured = |row: &Row| {
            let names = [
                row.vae.clone(),
                row.psnr.count.to_string(),
                distance(row.pdist.as_ref()),
            ];
            let cosine = self.cosine.as_ref().map(|_| distance(row.cosine.as_ref()));
            let rest = [with_error(&row.ssim, 4), with_error(&row.psnr, 2)];
            names.into_iter().chain(cosine).chain(rest).collect()
        };
        let published = |row: &Published| {
            let names = [row.to_string(), PUBLISHED_IMAGES.to_string(), "-".to_owned()];
            let numbers = [
                format!("{:.3}", row.pdist),
                format!("{:.3}", row.ssim),
                format!("{:.1}", row.psnr),
            ];
            names.into_iter().chain(numbers).collect()
        };
        let measured = self.rows.iter().map(measured);
        measured.chain(self.published.iter().map(published)).collect()
    }

    /// Returns notes that name the networks of the distances and the source of published rows.
    fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        let names: Vec<String> = [("PDist", &self.perceptual), ("PDist by cosines", &self.cosine)]
            .into_iter()
            .filter_map(|(title, name)| Some(format!("{title}: {}", name.as_ref()?)))
            .collect();
        if !names.is_empty() {
            notes.push(format!("{}; means ± standard errors of the mean", names.join("; ")));
        }
        if !self.published.is_empty() {
            notes.push(format!(
                "Published: arXiv 2506.15742, table 1, on {PUBLISHED_IMAGES} images of ImageNet at \
                 {PUBLISHED_SIDE}x{PUBLISHED_SIDE}; that its PDist is this one is inferred"
            ));
        }
        notes
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cosine = self.cosine.as_ref().map(|_| "PDist by cosines");
        let head = ["autoencoder", "images", "PDist"].into_iter().chain(cosine);
        let head = head.chain(["SSIM", "PSNR, dB"]).map(str::to_owned).collect();
        let lines: Vec<Vec<String>> = std::iter::once(head).chain(self.lines()).collect();
        let width = |column: usize| {
            let cells = lines.iter().filter_map(|line| line.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..lines.first().map_or(0, Vec::len)).map(width).collect();
        for line in &lines {
            for (number, (cell, &width)) in line.iter().zip(&widths).enumerate() {
                match number {
                    0 => write!(f, "{cell:<width$}")?,
                    _ => write!(f, "  {cell:>width$}")?,
                }
            }
            writeln!(f)?;
        }
        self.notes().into_iter().try_for_each(|note| writeln!(f, "{note}"))
    }
}

#[cfg(test)]
mod tests {
    use kontext_core::Device;
    use kontext_nn::Weights;

    use super::*;
    use crate::metrics::Features;

    fn measured(vae: &str, pdist: Option<f64>, ssim: f64, psnr: f64) -> Measurement {
        let (image, setting) = (String::new(), String::new());
        Measurement {
            vae: vae.to_owned(),
            image,
            setting,
            pixels: 0,
            pdist,
            cosine: pdist.map(|squares| squares / 2.0),
            ssim,
            psnr,
        }
    }

    fn features(backbone: Backbone) -> Features {
        Features::new(backbone, &Weights::synthetic(0), Device::Cpu).unwrap()
    }

    fn measurements() -> [Measurement; 3] {
        [
            measured("large", Some(0.1), 0.9, 30.0),
            measured("a,small", None, 0.5, 20.0),
            measured("large", Some(0.3), 0.8, 34.0),
        ]
    }

    #[test]
    fn rows_are_means_with_their_standard_errors_in_the_order_given() {
        let network = Perceptual::new(features(Backbone::AlexNet), None).unwrap();
        let networks = Distances {
            perceptual: Some(&network),
            cosine: None,
        };
        let table = Table::of(&measurements(), networks).unwrap();
        assert_eq!(
            table.csv(),
            "vae,pictures,pdist,pdist_se,ssim,ssim_se,psnr,psnr_se,cosine,cosine_se\n\
             large,2,0.200000,0.100000,0.850000,0.050000,32.000000,2.000000,0.100000,0.050000\n\
             \"a,small\",1,,,0.500000,,20.000000,,,\n"
        );
        assert!(
            table
                .markdown()
                .contains("| large | 2 | 0.2000 ± 0.1000 | 0.8500 ± 0.0500 | 32.00 ± 2.00 |\n")
        );
        assert!(
            table
                .markdown()
                .ends_with("\nPDist: pdist-alexnet; means ± standard errors of the mean\n")
        );
        let text = table.to_string();
        let widths: Vec<usize> = text.lines().take(3).map(|line| line.chars().count()).collect();
        assert!(widths.windows(2).all(|pair| pair[0] == pair[1]), "{text}");
        assert!(text.contains("a,small           1                -"), "{text}");
    }

    #[test]
    fn published_rows_stand_below_those_of_the_same_distance() {
        let of = |backbone| {
            let network = Perceptual::cosine(features(backbone));
            let networks = Distances {
                perceptual: None,
                cosine: Some(&network),
            };
            Table::of(&measurements(), networks).unwrap()
        };
        let text = of(Backbone::Vgg16).markdown();
        for line in [
            "| autoencoder | images | PDist ↓ | PDist by cosines ↓ | SSIM ↑ | PSNR ↑ |",
            "| large | 2 | 0.2000 ± 0.1000 | 0.1000 ± 0.0500 | 0.8500 ± 0.0500 | 32.00 ± 2.00 |",
            "| Flux-VAE, published | 4096 | - | 0.332 | 0.896 | 31.1 |",
            "| SD3-TAE, published | 4096 | - | 0.746 | 0.774 | 27.9 |",
            "| SD-VAE, published | 4096 | - | 0.949 | 0.720 | 25.0 |",
            "PDist by cosines: cosine-vgg16; means ± standard errors of the mean",
        ] {
            assert!(text.contains(&format!("{line}\n")), "{line}\n{text}");
        }
        let text = of(Backbone::Vgg16).to_string();
        let widths: Vec<usize> = text.lines().take(8).map(|line| line.chars().count()).collect();
        assert!(widths.windows(2).all(|pair| pair[0] == pair[1]), "{text}");
        // The paper's network is VGG: numbers of another one are not comparable.
        assert!(!of(Backbone::AlexNet).markdown().contains("ublished"));
        assert_eq!(of(Backbone::Vgg16).csv().lines().count(), 3);
    }

    #[test]
    fn without_a_network_there_is_no_note() {
        let table = Table::of(&[measured("A", None, 0.9, 30.0)], Distances::default()).unwrap();
        assert!(!table.markdown().contains("PDist:") && !table.to_string().contains("±"));
        assert_eq!(Table::of(&[], Distances::default()).unwrap().rows().len(), 0);
    }
}
