//! Fuzzing of weight files: each broken file is read or refused, in time, and for no more memory than its
//! size explains.
//!
//! A short run is among the tests. A long one, of 30 minutes or as many as are given:
//!
//! ```text
//! KONTEXT_FUZZ_MINUTES=30 cargo test --release -p kontext-core --test fuzz -- --ignored --nocapture
//! ```
//!
//! It starts from small files in every form that other programs write and from some handmade ones, and
//! mutates their fields and their bytes; then it opens the file and reads all of it, in every way. Case `n`
//! of a seed is the same on every machine: `KONTEXT_FUZZ_SEED` gives the seed of a long run (default: the
//! time), `KONTEXT_FUZZ_CASE` the one case to run, or the first of many with `KONTEXT_FUZZ_MINUTES`.
//! `KONTEXT_FUZZ_FILE` names a file to try instead.
//!
//! A file that panics, takes more memory than [`allowed`] or longer than [`LIMIT`] is kept in
//! `target/fuzz-failures`. A file that ends the program is found there, too, under the name of the file at
//! hand.
#![allow(clippy::unwrap_used, clippy::panic)] // In helper functions of a test.

mod bytes;
#[path = "../common/mod.rs"]
mod common;
mod draw;
mod explore;
mod gguf;
mod memory;
mod tensors;

use std::io::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use common::{Part, described, entry, gguf_file, safetensors_file};
use draw::Draw;
use gguf::Gguf;
use memory::{Meter, address_space, computed};
use tensors::Tensors;

/// Limit of computing time per file. A file takes some milliseconds; one that computes for longer hangs.
const LIMIT: Duration = Duration::from_secs(5);
/// Limit of elapsed time per file, for one that does not compute, or a system that does not report it. Other
/// programs may delay it for a while.
const WAIT: Duration = Duration::from_secs(120);
/// Allowed growth of the program's address space beyond that of sound files: libtorch's scratch and threads.
/// A tensor as large as a damaged header claims would take far more.
const ADDRESSES: u64 = 256 << 20;

/// Returns the bytes that opening or reading a file of this size may allocate at once: 32 times the file, and
/// 32 kB for messages and libtorch's options, which a file of a few bytes takes as well.
///
/// A header is the densest part of a file. The shortest description of a tensor takes 50 bytes in safetensors
/// and 37 in GGUF, data included, and becomes some 1000 bytes of names, shapes and tree nodes in three lists,
/// two of which are freed. Data take less: Q2_K has 84 bytes for 256 values, which are 1024 bytes unpacked,
/// 12 times as much.
fn allowed(file: u64) -> u64 {
    32 * file + 32_768
}

/// Serialises the tests that measure memory.
fn alone() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A sound file from which cases start.
#[derive(Clone)]
enum Seed {
    Tensors(Tensors),
    Gguf(Gguf),
}

impl Seed {
    fn read(file: &[u8]) -> Option<Self> {
        Some(match file.starts_with(b"GGUF") {
            true => Seed::Gguf(Gguf::read(file)?),
            false => Seed::Tensors(Tensors::read(file)?),
        })
    }

    fn bytes(&self) -> Vec<u8> {
        match self {
            Seed::Tensors(tensors) => tensors.bytes(),
            Seed::Gguf(gguf) => gguf.bytes(),
        }
    }
}

/// Returns the seeds: every form, GGUF with all types of metadata, and features absent from these.
fn seeds() -> Vec<Seed> {
    let quant = common::fixture("quant");
    let quant = safetensors::SafeTensors::deserialize(&quant).unwrap();
    let parts = [
        Part::bytes("conv.weight", "F8_E4M3", &[4, 8, 1, 1], &[0x38; 32]),
        Part::floats("conv.scale_weight", &[1.0, 2.0, 3.0, 4.0]),
        Part::bytes("column.weight", "I8", &[5, 1], &[127; 5]),
        Part::floats("column.SCB", &[1.0; 5]),
        Part::bytes("table.weight", "F16", &[6, 3], &[0x3c; 36]),
        Part::bytes("wide.weight", "F64", &[2, 2], &[0x40; 32]),
        Part::bytes("ids", "I64", &[2], &[1; 16]),
    ];
    let described = [described("a.weight", &[32, 2], 8, 0), described("a.bias", &[2], 0, 96)];
    let mut files = vec![
        quant.tensor("gguf").unwrap().data().to_vec(),
        safetensors_file(&parts),
        safetensors_file(&[]),
        gguf_file(
            2,
            &[entry("general.alignment", 4, &32_u32.to_le_bytes())],
            &described,
            &[0x2a; 128],
        ),
        gguf_file(3, &[], &[], &[]),
    ];
    files.extend(common::forms().into_iter().map(|form| form.file));
    files.iter().map(|file| Seed::read(file).unwrap()).collect()
}

/// Builds the file of a case: a seed with up to four mutations of its fields, or of its bytes, or of both.
fn file_of(seeds: &[Seed], seed: u64, case: u64) -> Vec<u8> {
    let draw = &mut Draw::new(seed, case);
    let mut changed = draw.pick(seeds).clone();
    let (fields, bytes) = *draw.pick(&[(1, 0), (2, 0), (4, 0), (0, 1), (0, 2), (0, 4), (1, 1), (2, 2)]);
    for _ in 0..fields {
        match &mut changed {
            Seed::Tensors(tensors) => tensors.change(draw),
            Seed::Gguf(gguf) => gguf.change(draw),
        }
    }
    let mut file = changed.bytes();
    (0..bytes).for_each(|_| bytes::change(&mut file, draw));
    file
}

/// Resources that one file took.
#[derive(Default)]
struct Taken {
    opened: bool,
    /// Peak of the bytes allocated, by opening and by reading.
    opening: u64,
    reading: u64,
}

/// Opens a file and reads all of it; returns an error message if it breaks a limit.
fn explore(path: &Path, size: u64) -> Result<Taken, String> {
    let addresses = address_space();
    let mut taken = Taken::default();
    let meter = Meter::start();
    let all = catch_unwind(AssertUnwindSafe(|| {
        let weights = explore::open(path);
        taken.opening = meter.most();
        if let Some(weights) = weights {
            taken.opened = true;
            let meter = Meter::start();
            explore::read(&weights, size);
            taken.reading = meter.most();
        }
    }));
    all.map_err(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        format!(
            "it panics: {}",
            text.or(panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
                .unwrap_or_default()
        )
    })?;
    for (what, bytes) in [("opening", taken.opening), ("reading", taken.reading)] {
        if bytes > allowed(size) {
            return Err(format!(
                "{what} its {size} bytes takes {bytes} bytes, at most {} are allowed",
                allowed(size)
            ));
        }
    }
    if let (Some(before), Some(after)) = (addresses, address_space())
        && after > before + ADDRESSES
    {
        return Err(format!("it makes the program grow by {} MB", (after - before) >> 20));
    }
    Ok(taken)
}

/// Returns the folder of failing files: `target/fuzz-failures`.
fn failures() -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("fuzz-failures");
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

/// Prints without the capture of tests: the text has to be seen if the program ends at once.
fn say(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// Resources that many cases took.
#[derive(Default)]
struct Sums {
    cases: u64,
    opened: u64,
    failed: Vec<String>,
    /// Largest share of the allowed bytes taken, and largest ratio of bytes allocated to bytes of the file.
    share: [f64; 2],
    ratio: [f64; 2],
    slowest: Duration,
    /// Computing time of the thread, if the system reports it.
    computed: Option<Duration>,
}

impl Sums {
    fn add(&mut self, size: u64, taken: &Taken, time: Duration) {
        self.cases += 1;
        self.opened += u64::from(taken.opened);
        self.slowest = self.slowest.max(time);
        for (index, bytes) in [taken.opening, taken.reading].into_iter().enumerate() {
            self.share[index] = self.share[index].max(bytes as f64 / allowed(size) as f64);
            // In small files, messages take the larger part.
            if size >= 1024 {
                self.ratio[index] = self.ratio[index].max(bytes as f64 / size as f64);
            }
        }
    }

    fn summary(&self) -> String {
        let [opening, reading] = self.ratio;
        let [share, shared] = self.share.map(|share| share * 100.0);
        let computed = self
            .computed
            .map(|time| format!(" in {:.1} min of computing", time.as_secs_f64() / 60.0));
        format!(
            "{} cases{}, {} opened, {} failed; at most {opening:.1} bytes for each byte of a file of 1 kB or more to open \
             it and {reading:.1} to read it, {share:.0} and {shared:.0} % of what is allowed; slowest {:.0} ms",
            self.cases,
            computed.unwrap_or_default(),
            self.opened,
            self.failed.len(),
            self.slowest.as_secs_f64() * 1e3
        )
    }
}

/// A running case.
#[derive(Clone, Copy)]
struct Case {
    number: u64,
    began: Instant,
    /// Computing time of its thread before the case.
    computed: Duration,
}

/// Ends the program if a case hangs; returns when no case is running.
fn watch(now: &Mutex<Option<Case>>, thread: Option<&Path>, seed: u64, at_hand: &Path) {
    loop {
        std::thread::sleep(Duration::from_millis(100));
        let Some(case) = *now.lock().unwrap_or_else(PoisonError::into_inner) else {
            return;
        };
        let computed = thread.and_then(computed).map(|time| time.saturating_sub(case.computed));
        if computed.is_some_and(|time| time > LIMIT) || case.began.elapsed() > WAIT {
            let kept = failures().join(format!("{seed}-{}", case.number));
            let _ = std::fs::copy(at_hand, &kept);
            say(&format!(
                "case {} of seed {seed} takes longer than {LIMIT:?}; kept as {}",
                case.number,
                kept.display()
            ));
            std::process::exit(1);
        }
    }
}

/// Runs cases from `first` on until there are enough or the time is up.
fn run(seed: u64, first: u64, most: u64, time: Duration) -> Sums {
    let seeds = seeds();
    let folder = failures();
    let at_hand = folder.join(format!("at-hand-{}", std::process::id()));
    let (began, mut sums, mut reported) = (Instant::now(), Sums::default(), Instant::now());
    for sound in &seeds {
        // One-time initialisation happens here.
        let file = sound.bytes();
        std::fs::write(&at_hand, &file).unwrap();
        explore::read(&explore::open(&at_hand).unwrap(), file.len() as u64);
    }
    let thread = memory::this_thread();
    let at = |number| {
        let computed = thread.as_deref().and_then(computed).unwrap_or_default();
        Some(Case {
            number,
            began: Instant::now(),
            computed,
        })
    };
    let now = Mutex::new(at(first));
    let before = thread.as_deref().and_then(computed).unwrap_or_default();
    std::thread::scope(|scope| {
        scope.spawn(|| watch(&now, thread.as_deref(), seed, &at_hand));
        for case in first..first.saturating_add(most) {
            if began.elapsed() > time || sums.failed.len() >= 20 {
                break;
            }
            let file = file_of(&seeds, seed, case);
            std::fs::write(&at_hand, &file).unwrap();
            let start = Instant::now();
            *now.lock().unwrap() = at(case);
            match explore(&at_hand, file.len() as u64) {
                Ok(taken) => sums.add(file.len() as u64, &taken, start.elapsed()),
                Err(reason) => {
                    let kept = folder.join(format!("{seed}-{case}"));
                    std::fs::write(&kept, &file).unwrap();
                    let reason = format!("case {case} of seed {seed}: {reason}; kept as {}", kept.display());
                    say(&reason);
                    sums.failed.push(reason);
                }
            }
            sums.computed = thread
                .as_deref()
                .and_then(computed)
                .map(|time| time.saturating_sub(before));
            if reported.elapsed() > Duration::from_secs(60) {
                reported = Instant::now();
                say(&format!(
                    "{:.0} min: {}",
                    began.elapsed().as_secs_f64() / 60.0,
                    sums.summary()
                ));
            }
        }
        *now.lock().unwrap() = None;
    });
    std::fs::remove_file(&at_hand).unwrap();
    sums
}

fn given<T: std::str::FromStr>(name: &str) -> Option<T> {
    std::env::var(name).ok()?.parse().ok()
}

#[test]
fn broken_files_are_read_or_refused_in_time_and_memory() {
    let _alone = alone();
    let sums = run(0, 0, u64::MAX, Duration::from_secs(2));
    println!("{}", sums.summary());
    assert!(sums.failed.is_empty(), "{:#?}", sums.failed);
}

#[test]
#[ignore = "it runs for half an hour: see the head of this file"]
fn broken_files_without_end_are_read_or_refused_in_time_and_memory() {
    let _alone = alone();
    if let Some(path) = given::<PathBuf>("KONTEXT_FUZZ_FILE") {
        explore(&path, std::fs::metadata(&path).unwrap().len()).unwrap();
        return;
    }
    let clock = SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs();
    let (seed, case) = (
        given("KONTEXT_FUZZ_SEED").unwrap_or(clock),
        given::<u64>("KONTEXT_FUZZ_CASE"),
    );
    let minutes = given("KONTEXT_FUZZ_MINUTES");
    let most = if case.is_some() && minutes.is_none() {
        1
    } else {
        u64::MAX
    };
    let time = Duration::from_secs_f64(60.0 * minutes.unwrap_or(30.0));
    say(&format!(
        "seed {seed}, from case {} on, for {time:?}",
        case.unwrap_or(0)
    ));
    let sums = run(seed, case.unwrap_or(0), most, time);
    say(&sums.summary());
    assert!(sums.failed.is_empty(), "{:#?}", sums.failed);
}

#[test]
fn the_densest_headers_take_no_more_memory_than_is_allowed() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file");
    let shape = |sides: usize| format!("[{}0]", "0,".repeat(sides));
    let tensor =
        |name: usize, shape: &str| format!(r#""{name:x}":{{"dtype":"U8","shape":{shape},"data_offsets":[0,0]}}"#);
    let header = |entries: Vec<String>| common::with_header(&format!("{{{}}}", entries.join(",")), &[]);
    let small = |index: usize| described(format!("{index:x}"), &[1], 0, 4 * index as u64);
    let aligned = entry("general.alignment", 4, &1_u32.to_le_bytes());
    let texts = format!(
        r#""__metadata__":{{{}}}"#,
        (0..20_000)
            .map(|i| format!(r#""{i:x}":"""#))
            .collect::<Vec<_>>()
            .join(",")
    );
    for (what, file) in [
        (
            "tensors",
            header(
                (0..20_000)
                    .map(|i| tensor(i, "[]").replace("[0,0]", &format!("[{i},{}]", i + 1)))
                    .collect(),
            ),
        ),
        ("empty tensors", header((0..20_000).map(|i| tensor(i, "[0]")).collect())),
        ("sides", header(vec![tensor(0, &shape(200_000))])),
        ("texts", header(vec![texts])),
        ("no tensors", header(vec![format!(r#""a":{}"#, shape(200_000))])),
        ("nested", header(vec![format!(r#""a":{}"#, "[".repeat(200_000))])),
        (
            "GGUF tensors",
            gguf_file(3, &[aligned], &(0..20_000).map(small).collect::<Vec<_>>(), &[0; 80_000]),
        ),
        (
            "GGUF entries",
            gguf_file(
                3,
                &(0..20_000)
                    .map(|i| entry(format!("{i:x}"), 0, &[0]))
                    .collect::<Vec<_>>(),
                &[],
                &[],
            ),
        ),
        (
            "GGUF texts",
            gguf_file(
                3,
                &[entry(
                    "a",
                    9,
                    &[&8_u32.to_le_bytes()[..], &20_000_u64.to_le_bytes(), &[0; 160_000]].concat(),
                )],
                &[],
                &[],
            ),
        ),
    ] {
        let size = [file.len() + if what == "tensors" { 20_000 } else { 0 }][0] as u64;
        let file = [file, vec![0; if what == "tensors" { 20_000 } else { 0 }]].concat();
        std::fs::write(&path, &file).unwrap();
        let meter = Meter::start();
        let opened = explore::open(&path).is_some();
        let bytes = meter.most();
        println!(
            "{what}: {size} bytes, opened: {opened}, {:.1} times as many allocated",
            bytes as f64 / size as f64
        );
        assert!(bytes <= allowed(size), "{what}: {bytes} bytes for {size}");
    }
}
