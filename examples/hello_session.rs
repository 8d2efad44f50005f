//! Edits an image in two turns: `cargo xtask run --release --example hello_session`.

use std::sync::Arc;

use kontext::Pipeline;

const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/models/kontext-emoji");
const IMAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/data/emoji-source.png");

fn main() -> kontext::Result<()> {
    let pipe = Arc::new(Pipeline::load(MODEL)?);
    let mut session = pipe.session(kontext::open_image(IMAGE)?);
    session.defaults.seed = Some(1);
    session.edit("turn him into a cook")?.save("hello-session-1.png")?;
    session.edit("make the skin dark")?.save("hello-session-2.png")
}
