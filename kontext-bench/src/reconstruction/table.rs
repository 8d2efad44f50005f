//! Means over all images, with one row per autoencoder.

use std::fmt::{self, Write as _};

use kontext_core::Result;

use super::Measurement;
use crate::cell;
use crate::statistics::Summary;

/// The row of one autoencoder.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// The autoencoder's name.
    pub vae: String,
    /// Perceptual distance, if every image has one.
    pub pdist: Option<Summary>,
    /// Structural similarity.
    pub ssim: Summary,
    /// Peak signal-to-noise ratio in dB.
    pub psnr: Summary,
}

/// A table of means; `Display` formats it as text for a terminal.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Table {
    rows: Vec<Row>,
    network: Option<String>,
}

impl Table {
    /// Summarises measurements, with autoencoders in order of first appearance. `network` is the name of the
    /// perceptual distance ([`crate::metrics::Perceptual::name`]).
    ///
    /// # Errors
    /// [`kontext_core::Error::InvalidArgument`] if a measurement is not finite.
    pub fn of(measurements: &[Measurement], network: Option<&str>) -> Result<Self> {
        let mut names: Vec<&str> = Vec::new();
        for measurement in measurements {
            if !names.contains(&measurement.vae.as_str()) {
                names.push(&measurement.vae);
            }
        }
        let row = |name: &str| {
            let named: Vec<&Measurement> = measurements.iter().filter(|m| m.vae == name).collect();
            let pdist: Option<Vec<f64>> = named.iter().map(|m| m.pdist).collect();
            Ok(Row {
                vae: name.to_owned(),
                pdist: pdist.map(|values| Summary::of(&values)).transpose()?,
                ssim: Summary::of(&named.iter().map(|m| m.ssim).collect::<Vec<_>>())?,
                psnr: Summary::of_psnr(&named.iter().map(|m| m.psnr).collect::<Vec<_>>())?,
            })
        };
        let rows = names.into_iter().map(row).collect::<Result<_>>()?;
        Ok(Self {
            rows,
            network: network.map(str::to_owned),
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
        let mut text = "| autoencoder | images | PDist ↓ | SSIM ↑ | PSNR ↑ |\n".to_owned();
        text.push_str("| --- | ---: | ---: | ---: | ---: |\n");
        for cells in self.rows.iter().map(cells) {
            // Writing to a string does not fail.
            let _ = writeln!(text, "| {} |", cells.map(|text| cell::markdown(&text)).join(" | "));
        }
        if let Some(note) = self.note() {
            let _ = writeln!(text, "\n{note}");
        }
        text
    }

    /// Formats the table as CSV, with the columns `vae,pictures,pdist,pdist_se,ssim,ssim_se,psnr,psnr_se`;
    /// unknown values are empty.
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
        let head = "vae,pictures,pdist,pdist_se,ssim,ssim_se,psnr,psnr_se".split(',');
        // Writing to memory does not fail.
        let _ = writer.write_record(head);
        for row in &self.rows {
            let numbers = [row.pdist.as_ref(), Some(&row.ssim), Some(&row.psnr)].map(pair);
            let facts = [cell::csv(&row.vae).into_owned(), row.psnr.count.to_string()];
            let _ = writer.write_record(facts.iter().chain(numbers.iter().flatten()));
        }
        String::from_utf8(writer.into_inner().unwrap_or_default()).unwrap_or_default()
    }

    /// Returns a note that names the network of the distance.
    fn note(&self) -> Option<String> {
        let network = self
            .network
            .as_ref()
            .filter(|_| self.rows.iter().any(|row| row.pdist.is_some()))?;
        Some(format!("PDist: {network}; means ± standard errors of the mean"))
    }
}

fn cells(row: &Row) -> [String; 5] {
    let pdist = row.pdist.as_ref().map_or("-".to_owned(), |pdist| with_error(pdist, 4));
    [
        row.vae.clone(),
        row.psnr.count.to_string(),
        pdist,
        with_error(&row.ssim, 4),
        with_error(&row.psnr, 2),
    ]
}

/// Formats "0.8963 ± 0.0041", or only the mean for a single value.
fn with_error(summary: &Summary, digits: usize) -> String {
    if summary.standard_error.is_nan() {
        return format!("{:.digits$}", summary.mean);
    }
    format!("{:.digits$} ± {:.digits$}", summary.mean, summary.standard_error)
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let head = ["autoencoder", "images", "PDist", "SSIM", "PSNR, dB"].map(str::to_owned);
        let lines: Vec<[String; 5]> = std::iter::once(head).chain(self.rows.iter().map(cells)).collect();
        let widths: [usize; 5] = std::array::from_fn(|at| {
            lines
                .iter()
                .filter_map(|line| line.get(at))
                .map(|c| c.chars().count())
                .max()
                .unwrap_or(0)
        });
        for line in &lines {
            for (number, (cell, width)) in line.iter().zip(widths).enumerate() {
                match number {
                    0 => write!(f, "{cell:<width$}")?,
                    _ => write!(f, "  {cell:>width$}")?,
                }
            }
            writeln!(f)?;
        }
        self.note().map_or(Ok(()), |note| writeln!(f, "{note}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(vae: &str, pdist: Option<f64>, ssim: f64, psnr: f64) -> Measurement {
        let (image, setting) = (String::new(), String::new());
        Measurement {
            vae: vae.to_owned(),
            image,
            setting,
            pixels: 0,
            pdist,
            ssim,
            psnr,
        }
    }

    #[test]
    fn rows_are_means_with_their_standard_errors_in_the_order_given() {
        let measurements = [
            measured("large", Some(0.1), 0.9, 30.0),
            measured("a,small", None, 0.5, 20.0),
            measured("large", Some(0.3), 0.8, 34.0),
        ];
        let table = Table::of(&measurements, Some("pdist-vgg16")).unwrap();
        assert_eq!(
            table.csv(),
            "vae,pictures,pdist,pdist_se,ssim,ssim_se,psnr,psnr_se\n\
             large,2,0.200000,0.100000,0.850000,0.050000,32.000000,2.000000\n\
             \"a,small\",1,,,0.500000,,20.000000,\n"
        );
        assert!(
            table
                .markdown()
                .contains("| large | 2 | 0.2000 ± 0.1000 | 0.8500 ± 0.0500 | 32.00 ± 2.00 |\n")
        );
        assert!(
            table
                .markdown()
                .ends_with("\nPDist: pdist-vgg16; means ± standard errors of the mean\n")
        );
        let text = table.to_string();
        let widths: Vec<usize> = text.lines().take(3).map(|line| line.chars().count()).collect();
        assert!(widths.windows(2).all(|pair| pair[0] == pair[1]), "{text}");
        assert!(text.contains("a,small           1                -"), "{text}");
    }

    #[test]
    fn without_a_network_there_is_no_note() {
        let table = Table::of(&[measured("A", None, 0.9, 30.0)], None).unwrap();
        assert!(!table.markdown().contains("PDist:") && !table.to_string().contains("±"));
        assert_eq!(Table::of(&[], None).unwrap().rows().len(), 0);
    }
}
