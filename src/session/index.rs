//! The contents of `session.json`.

use std::path::Path;

use kontext_core::{Error, Result, printable, shortened, utf8};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::files::{self, Files};
use super::{DifferenceMap, Session, Turn};
use crate::output::Made;
use crate::{MaskSettings, Request};

/// Format version of written sessions. Version 1, without an id, is still read; a later one is refused with
/// an explanation.
pub(super) const FORMAT: u32 = 2;
pub(super) const INDEX: &str = "session.json";

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Index {
    pub(super) format: u32,
    /// Drawn when the session began: a folder's session is only replaced by later turns of itself. `None` in
    /// format
    /// 1.
    pub(super) id: Option<String>,
    /// Version of the crate that wrote the session.
    pub(super) kontext: String,
    pub(super) current: usize,
    pub(super) reencode: bool,
    pub(super) keep_unchanged: Option<KeepEntry>,
    pub(super) defaults: RequestEntry,
    pub(super) turns: Vec<TurnEntry>,
}

/// Read before the rest, which another format version may have changed.
#[derive(Debug, Deserialize)]
struct Format {
    format: u32,
    #[serde(default)]
    kontext: String,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum KeepEntry {
    Difference(DifferenceMap),
    /// A file name.
    Mask(String),
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TurnEntry {
    pub(super) parent: Option<usize>,
    pub(super) next: Option<usize>,
    /// File name, like the next two fields. The key is older than the field's name.
    #[serde(rename = "picture")]
    pub(super) image: String,
    pub(super) changed: Option<String>,
    pub(super) latents: Option<String>,
    pub(super) edit: Option<EditEntry>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct EditEntry {
    pub(super) asked: RequestEntry,
    pub(super) made: Made,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RequestEntry {
    pub(super) request: Request,
    /// File names.
    pub(super) references: Vec<String>,
    pub(super) noise: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) mask: Option<MaskEntry>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct MaskEntry {
    /// A file name.
    pub(super) pixels: String,
    pub(super) settings: MaskSettings,
}

impl Index {
    /// Reads the bytes of a `session.json`. One without an id gets the digest of its bytes as such.
    pub(super) fn parse(path: &Path, bytes: &[u8]) -> Result<Self> {
        let wrong = |reason: String| Error::config(path, format!("{reason}; restore it from a copy"));
        let text = utf8(bytes).map_err(|reason| wrong(reason.to_owned()))?;
        if !text.trim_start().starts_with('{') {
            return Err(wrong("expected an object in braces, `{…}`".to_owned()));
        }
        let Format { format, kontext } = serde_json::from_str(text).map_err(|e| wrong(e.to_string()))?;
        if !(1..=FORMAT).contains(&format) {
            let kontext = shortened(&printable(&kontext), 20);
            let reason = format!(
                "it is a session of format {format}, written by kontext {kontext}; this version reads 1 to {FORMAT}: \
                 update kontext"
            );
            return Err(Error::config(path, reason));
        }
        let mut index: Self = serde_json::from_str(text).map_err(|e| wrong(e.to_string()))?;
        index.id.get_or_insert_with(|| files::digest(bytes));
        Ok(index)
    }

    /// Returns the text of the file, if the index can be read back from it: JSON has no NaN, for example.
    pub(super) fn to_text(&self, path: &Path) -> Result<String> {
        let text = |index: &Self| serde_json::to_string_pretty(index).map_err(|e| Error::bug(e.to_string()));
        let written = text(self)?;
        let same = Self::parse(path, written.as_bytes()).and_then(|read| Ok(text(&read)? == written));
        match same {
            Ok(true) => Ok(written),
            Ok(false) => Err(Error::bug("a session that is read back as another")),
            Err(error) => Err(Error::bug(format!("a session that cannot be read back ({error:?})"))),
        }
    }
}

/// Checks that saving a session into a folder loses no turn of another one, nor of another copy of the
/// session.
pub(super) fn check_replaceable(path: &Path, session: &Session) -> Result<()> {
    let refused = |what: String| {
        let expected = "a new one, or that of this session; name another, or remove its session.json";
        let got = format!("{}, which holds {what}", path.parent().unwrap_or(path).display());
        Err(Error::invalid("folder of a session", expected, got))
    };
    if path.is_symlink() {
        // It would be written to wherever it leads.
        let folder = path.parent().unwrap_or(Path::new("."));
        Files { folder }.own(INDEX)?;
    }
    let bytes = match files::read_bounded(path) {
        Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    let index = match Index::parse(path, &bytes) {
        Ok(index) => index,
        // What a power cut leaves of a file, or damage to this session's own: saving repairs it.
        Err(_) if bytes.iter().all(|&byte| byte == 0) || names(&bytes, &session.id) => return Ok(()),
        Err(Error::Checkpoint { source, .. }) => return refused(format!("no session that can be read ({source})")),
        Err(error) => return Err(error),
    };
    if index.id.as_deref() != Some(&session.id) {
        return refused(format!("another session, of {} turns", index.turns.len()));
    }
    let turns = session.turns();
    if index.turns.len() > turns.len() {
        return refused(format!(
            "{} turns of this session, of which {} were added elsewhere",
            index.turns.len(),
            index.turns.len() - turns.len()
        ));
    }
    let differs = |(stored, turn): &(&TurnEntry, &Turn)| stored.facts() != facts(turn);
    match index.turns.iter().zip(turns).position(|pair| differs(&pair)) {
        Some(id) => refused(format!("another turn {id} of this session, added elsewhere")),
        None => Ok(()),
    }
}

/// Returns `true` if damaged bytes are those of a session with this id.
fn names(bytes: &[u8], id: &str) -> bool {
    let text = String::from_utf8_lossy(bytes);
    // A later version's session is not damaged.
    let later = serde_json::from_str::<Format>(&text).is_ok_and(|head| head.format > FORMAT);
    !later && text.contains(&format!("\"id\": \"{id}\""))
}

impl TurnEntry {
    /// Returns the facts that distinguish a turn, apart from its files.
    fn facts(&self) -> Value {
        let edit = self.edit.as_ref().map(|edit| (&edit.asked.request, &edit.made));
        json!([self.parent, edit])
    }
}

/// As [`TurnEntry::facts`].
fn facts(turn: &Turn) -> Value {
    json!([turn.parent, turn.edit.as_ref().map(|(request, made)| (request, made))])
}
