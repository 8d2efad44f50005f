//! Tests that prefetched weights equal those of the plain way, in any order and from any number of threads.

use std::sync::atomic::Ordering;
use std::time::Duration;

use kontext_core::Error;
use kontext_formats::Scales;
use kontext_formats::quant::Format;
use proptest::prelude::*;
use tch::{Device, Kind};

use super::*;

const CPU: Device = Device::Cpu;
const ROWS: usize = 6;
const COLUMNS: usize = 64;

/// A device that does everything as late as allowed: bytes are copied when they are waited for. It panics if
/// the ring breaks its contract.
struct Late {
    capacity: usize,
    /// Number of fills until it fails.
    left: usize,
}

struct LateBuffer {
    bytes: Tensor,
    /// Bytes in flight.
    coming: Option<Vec<u8>>,
    lent: bool,
}

impl Mover for Late {
    type Buffer = LateBuffer;

    fn buffers(&mut self) -> Result<Vec<LateBuffer>> {
        let one = || Ok(Tensor::f_full([self.capacity as i64], 255, (Kind::Uint8, CPU))?);
        let buffer = |bytes| LateBuffer {
            bytes,
            coming: None,
            lent: false,
        };
        (0..BUFFERS).map(|_| one().map(buffer)).collect()
    }

    fn begin(&mut self, bytes: &[u8], buffer: &mut LateBuffer) -> Result<()> {
        assert!(!buffer.lent, "filled while it is read");
        thread_pause(bytes.len() % 3);
        self.left = self
            .left
            .checked_sub(1)
            .ok_or_else(|| Error::invalid("device", "one that works", "none"))?;
        buffer.coming = Some(bytes.to_vec());
        Ok(())
    }

    fn wait(buffer: &mut LateBuffer) -> Result<()> {
        assert!(!buffer.lent, "lent twice");
        buffer.lent = true;
        if let Some(bytes) = buffer.coming.take() {
            buffer
                .bytes
                .narrow(0, 0, bytes.len() as i64)
                .copy_(&Tensor::from_slice(&bytes));
        }
        Ok(())
    }

    fn release(buffer: &mut LateBuffer) -> Result<()> {
        buffer.lent = false;
        Ok(())
    }

    fn content(buffer: &LateBuffer) -> &Tensor {
        assert!(buffer.lent && buffer.coming.is_none(), "read before it is there");
        &buffer.bytes
    }
}

fn thread_pause(tens: usize) {
    std::thread::sleep(Duration::from_micros(10 * tens as u64));
}

/// Returns matrices in several formats, each with different bytes.
fn matrices(count: usize) -> Vec<Arc<StoredMatrix>> {
    let formats = [Format::Bf16, Format::Q8_0, Format::F32, Format::Q4_0, Format::Int8];
    let matrix = |index: usize| {
        let format = formats[index % formats.len()];
        let rows = ROWS + index % 3;
        let size = rows * format.row_bytes(COLUMNS).unwrap();
        let bytes = (0..size)
            .map(|i| ((i + 7 * index).wrapping_mul(2_654_435_761) >> 13) as u8 & 0x3b)
            .collect();
        let scales = if format == Format::Int8 {
            Scales::Rows(vec![0.5; rows])
        } else {
            Scales::None
        };
        Arc::new(StoredMatrix::new(bytes, format, [rows, COLUMNS], scales))
    };
    (0..count).map(matrix).collect()
}

fn prefetch(make: fn(usize) -> Result<Late>, matrices: &[Arc<StoredMatrix>]) -> Prefetch<Late> {
    let prefetch = Prefetch::new(make);
    matrices.iter().for_each(|matrix| prefetch.expect(matrix));
    prefetch
}

fn working(capacity: usize) -> Result<Late> {
    Ok(Late {
        capacity,
        left: usize::MAX,
    })
}

/// Returns `true` if a part equals that of the plain way.
fn is_plain(prefetch: &Prefetch<Late>, matrix: &Arc<StoredMatrix>, rows: Range<usize>, columns: Range<usize>) -> bool {
    let empty = || {
        Tensor::full(
            [rows.len() as i64, columns.len() as i64],
            f64::NAN,
            (Kind::BFloat16, CPU),
        )
    };
    let (got, expected) = (empty(), empty());
    prefetch.unpack_to(matrix, rows.clone(), columns.clone(), &got).unwrap();
    dequant::unpack_to(&matrix.view().unwrap(), rows, columns, &expected).unwrap();
    got.equal(&expected)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_order_gives_what_the_plain_way_gives(
        asked in proptest::collection::vec((0..7_usize, 0..ROWS, 0..2_usize), 1..60),
    ) {
        let matrices = matrices(7);
        let prefetch = prefetch(working, &matrices);
        for (index, row, half) in asked {
            let columns = half * COLUMNS / 2..COLUMNS;
            prop_assert!(is_plain(&prefetch, &matrices[index], row..ROWS, columns));
        }
    }

    #[test]
    fn two_runs_at_once_and_steps_that_break_off_give_what_the_plain_way_gives(
        (count, first, second) in (1..6_usize, 1..20_usize, 1..20_usize),
        turned in any::<bool>(),
    ) {
        let matrices = matrices(count);
        let prefetch = prefetch(working, &matrices);
        let run = |asks: usize, turned: bool| {
            (0..asks).all(|ask| {
                let index = if turned { count - 1 - ask % count } else { ask % count };
                is_plain(&prefetch, &matrices[index], 0..ROWS, 0..COLUMNS)
            })
        };
        let both = std::thread::scope(|scope| {
            let other = scope.spawn(|| run(second, turned));
            run(first, false) && other.join().unwrap()
        });
        prop_assert!(both && run(first, !turned));
    }

    #[test]
    fn a_device_that_fails_at_any_time_leaves_the_plain_way(good in 0..12_usize, asks in 1..20_usize) {
        /// Creates a mover that works for a number of fills, given by the remainder of the capacity.
        fn failing(capacity: usize) -> Result<Late> {
            Ok(Late { capacity, left: capacity % 12 })
        }
        let matrices = matrices(4);
        let prefetch = prefetch(failing, &matrices);
        let largest = prefetch.largest.load(Ordering::Relaxed);
        prefetch.largest.store(largest.next_multiple_of(12) + good, Ordering::Relaxed);
        for ask in 0..asks {
            prop_assert!(is_plain(&prefetch, &matrices[ask % 4], 0..ROWS, 0..COLUMNS));
        }
    }
}

#[test]
fn a_mover_that_cannot_be_made_and_a_matrix_that_does_not_fit_leave_the_plain_way() {
    let matrices = matrices(3);
    // Repeated: the worker may end before or after the ring is created.
    for _ in 0..200 {
        let none = prefetch(|_| Err(Error::invalid("device", "one", "none")), &matrices);
        assert!(
            matrices
                .iter()
                .all(|matrix| is_plain(&none, matrix, 0..ROWS, 0..COLUMNS))
        );
    }
    // The largest matrix was not announced.
    let small = prefetch(working, &matrices[1..2]);
    assert!(
        matrices
            .iter()
            .all(|matrix| is_plain(&small, matrix, 0..ROWS, 0..COLUMNS))
    );
}

/// A source that holds its own number, and a mover that records its transfers.
mod order {
    use std::sync::Mutex;

    use super::*;

    struct Number(Vec<u8>);
    #[derive(Clone, Default)]
    struct Recorder(Arc<Mutex<Vec<u8>>>);

    impl Source for Number {
        fn bytes(&self) -> &[u8] {
            &self.0
        }
    }

    impl Mover for Recorder {
        type Buffer = Tensor;

        fn buffers(&mut self) -> Result<Vec<Tensor>> {
            Ok(vec![
                Tensor::zeros([1], (Kind::Uint8, CPU)),
                Tensor::zeros([1], (Kind::Uint8, CPU)),
            ])
        }

        fn begin(&mut self, bytes: &[u8], buffer: &mut Tensor) -> Result<()> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            buffer.copy_(&Tensor::from_slice(bytes));
            Ok(())
        }

        fn wait(_: &mut Tensor) -> Result<()> {
            Ok(())
        }

        fn release(_: &mut Tensor) -> Result<()> {
            Ok(())
        }

        fn content(buffer: &Tensor) -> &Tensor {
            buffer
        }
    }

    /// Returns a function that requests the source of a number, and returns the numbers of all transfers so far.
    fn requests(in_order: bool) -> impl Fn(usize) -> Vec<u8> {
        let sources: Vec<_> = (0..5).map(|number| Arc::new(Number(vec![number]))).collect();
        let recorder = Recorder::default();
        let transfers = Arc::clone(&recorder.0);
        let order = if in_order { sources.as_slice() } else { &[] };
        let ring = Ring::<Number, Recorder>::new(move || Ok(recorder), order);
        move |number| {
            // Parts of one matrix are requested one after the other.
            for _ in 0..2 {
                let value = ring
                    .with(&sources[number], |bytes| Ok(bytes.int64_value(&[0])))
                    .unwrap()
                    .unwrap();
                assert_eq!(value, number as i64);
            }
            // The worker is done when all requested transfers have arrived.
            while ring.filling().contains(&true) {
                std::thread::yield_now();
            }
            transfers.lock().unwrap().clone()
        }
    }

    #[test]
    fn in_a_given_order_each_is_on_its_way_before_the_first_request() {
        let ask = requests(true);
        assert_eq!(ask(0), [0, 1]);
        assert_eq!(ask(1), [0, 1, 2]);
        // A request out of order costs a transfer.
        assert_eq!(ask(3), [0, 1, 2, 3, 4]);
        assert_eq!(ask(4), [0, 1, 2, 3, 4]);
    }

    #[test]
    fn from_the_second_step_on_each_is_on_its_way_before_it_is_asked_for() {
        let ask = requests(false);
        for number in 0..5 {
            // The first step transfers each on request; the order is not known yet.
            assert_eq!(ask(number), (0..=number as u8).collect::<Vec<_>>());
        }
        // The order is cyclic: the first follows the last.
        assert_eq!(ask(0), [0, 1, 2, 3, 4, 0, 1]);
        assert_eq!(ask(1), [0, 1, 2, 3, 4, 0, 1, 2]);
        assert_eq!(ask(2), [0, 1, 2, 3, 4, 0, 1, 2, 3]);
        // Another order costs a copy and is learned.
        assert_eq!(ask(4), [0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0]);
    }
}
