//! Edits an image: `cargo xtask run --release --example hello_edit`.

use kontext::{Pipeline, Request};

const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/models/kontext-emoji");
const IMAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/data/emoji-source.png");

fn main() -> kontext::Result<()> {
    let pipe = Pipeline::load(MODEL)?;
    let image = kontext::open_image(IMAGE)?;
    let output = pipe.run(&Request::edit(&image, "turn him into a cook").seed(1))?;
    output.save("hello-edit.png")
}
