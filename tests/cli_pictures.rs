//! Image files given to the example programs.
#![allow(clippy::unwrap_used)] // In helper functions of a test.

mod common;

use std::io::Write;
use std::process::Stdio;

use common::program;
use image::{Rgb, RgbImage, Rgba, RgbaImage};

#[test]
fn a_session_refuses_a_mask_with_transparency_and_reads_a_pipe_once() {
    let folder = tempfile::tempdir().unwrap();
    let strokes = RgbaImage::from_fn(128, 128, |x, _| Rgba([255, 255, 255, if x < 64 { 255 } else { 0 }]));
    strokes.save(folder.path().join("strokes.png")).unwrap();
    let reference = RgbImage::from_fn(64, 64, |x, y| Rgb([x as u8, y as u8, 9]));
    reference.save(folder.path().join("reference.png")).unwrap();
    let mut session = program("session")
        .args(["--device", "cpu", "--steps", "1", "--max-area", "4096", "--seed", "1"])
        .current_dir(folder.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = ":keep mask strokes.png\n".to_owned();
    if cfg!(unix) {
        let pipe = folder.path().join("pipe");
        let made = std::process::Command::new("mkfifo").arg(&pipe).status().unwrap();
        assert!(made.success());
        let bytes = std::fs::read(folder.path().join("reference.png")).unwrap();
        std::thread::spawn(move || std::fs::write(pipe, bytes));
        lines += ":reference pipe\nmake it like the second image\n";
    }
    session.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
    let output = session.wait_with_output().unwrap();
    let err = String::from_utf8(output.stderr).unwrap();
    assert!(
        err.contains("error: cannot use the image strokes.png: the mask has transparent pixels"),
        "{err}"
    );
    assert_eq!(err.matches("error:").count(), 1, "{err}");
    assert_eq!(folder.path().join("session-1.png").is_file(), cfg!(unix), "{err}");
}
