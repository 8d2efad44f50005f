//! Runs as streams of events: the same bytes as `run`, errors and cancellation as the last item.
#![allow(clippy::unwrap_used)] // In helper functions of a test.

mod common;

use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use image::{Rgb, RgbImage};
use kontext::{Device, Error, Event, Layout, Output, Pipeline, Request, Result, RunStream, StreamEvent};

static PIPE: LazyLock<Arc<Pipeline>> = LazyLock::new(load);

fn load() -> Arc<Pipeline> {
    let builder = Pipeline::builder().device(Device::Cpu).max_sequence_length(32);
    Arc::new(builder.load(common::model(Layout::Diffusers)).unwrap())
}

fn edit() -> Request {
    let image = RgbImage::from_fn(70, 50, |x, y| Rgb([(x * 3) as u8, (y * 5) as u8, (x + y) as u8]));
    Request::edit(image, "make it red").max_area(64 * 64).steps(3).seed(3)
}

/// Returns the event's name and numbers.
fn name(event: &StreamEvent) -> String {
    match event {
        StreamEvent::Planned { seed, .. } => format!("planned {seed}"),
        // The reference is stretched to the grid.
        StreamEvent::Warning { .. } => "warning".to_owned(),
        StreamEvent::Step { done, total, .. } => format!("step {done}/{total}"),
        StreamEvent::Decoded { done, total } => format!("decoded {done}/{total}"),
        StreamEvent::Done(_) => "done".to_owned(),
        other => format!("{other:?}"),
    }
}

/// Returns the run's output from its last event.
fn output(event: StreamEvent) -> Option<Output> {
    match event {
        StreamEvent::Done(output) => Some(output),
        _ => None,
    }
}

/// Checks that events are those of a run of [`edit`], and returns its output.
fn checked(items: Vec<Result<StreamEvent>>) -> Output {
    let names: Vec<String> = items.iter().map(|item| name(item.as_ref().unwrap())).collect();
    let expected = [
        "planned 3",
        "warning",
        "step 1/3",
        "step 2/3",
        "step 3/3",
        "decoded 1/1",
        "done",
    ];
    assert_eq!(names, expected);
    items.into_iter().find_map(|item| output(item.unwrap())).unwrap()
}

fn same(a: &Output, b: &Output) {
    assert_eq!(
        (&a.images, &a.latents, a.seed, &a.plan),
        (&b.images, &b.latents, b.seed, &b.plan)
    );
}

/// Waits until the threads of this pipeline's streams have ended.
fn wait_for_end(pipe: &Arc<Pipeline>) {
    let start = Instant::now();
    while Arc::strong_count(pipe) > 1 {
        assert!(start.elapsed() < Duration::from_secs(60), "a thread still runs");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_stream_gives_the_events_and_bytes_of_a_run() {
    let expected = PIPE.run(&edit()).unwrap();
    same(&checked(PIPE.run_stream(edit()).into_iter().collect()), &expected);
    // Several at once, each with the same bytes.
    let streams = [(); 3].map(|()| PIPE.run_stream(edit()));
    for stream in streams {
        same(&checked(stream.into_iter().collect()), &expected);
    }
}

#[test]
fn latents_of_a_step_are_those_of_the_callback() {
    let mut expected = Vec::new();
    let observe = |event: Event<'_>| {
        if let Event::Step { latents, .. } = event {
            expected.push(latents.copy());
        }
        std::ops::ControlFlow::Continue(())
    };
    PIPE.run_with(&edit(), observe).unwrap();
    // Read after the run: later steps do not write to them.
    let events: Vec<_> = PIPE.run_stream(edit()).into_iter().collect::<Result<_>>().unwrap();
    let steps = events.iter().filter_map(|event| match event {
        StreamEvent::Step { latents, .. } => Some(latents),
        _ => None,
    });
    assert!(steps.clone().zip(&expected).all(|(a, b)| a.equal(b)));
    assert_eq!(steps.count(), expected.len());
}

#[test]
fn an_edit_stream_is_a_run_with_the_default_options() {
    let image = RgbImage::from_pixel(32, 32, Rgb([200, 10, 10]));
    let mut stream = PIPE.edit_stream(image.clone(), "make it blue").into_iter();
    let Some(Ok(StreamEvent::Planned { plan, .. })) = stream.next() else {
        panic!("the run is not planned first")
    };
    assert_eq!(plan, PIPE.plan(&Request::edit(image, "make it blue")).unwrap());
    // Its steps are long, and a program must not end under one.
    stream.stop();
}

#[test]
fn an_error_is_the_last_item() {
    let items: Vec<_> = PIPE.run_stream(edit().strength(2.0)).into_iter().collect();
    assert_eq!(items.len(), 1);
    let error = items[0].as_ref().unwrap_err();
    assert!(
        matches!(error, Error::InvalidArgument { name: "strength", .. }),
        "{error}"
    );
}

#[test]
fn a_cancelled_stream_ends_with_that_error() {
    let pipe = load();
    let stream = pipe.run_stream(edit().steps(500));
    let cancel = stream.canceller();
    let mut events = stream.into_iter();
    for expected in ["planned 3", "warning", "step 1/500", "step 2/500"] {
        assert_eq!(name(&events.next().unwrap().unwrap()), expected);
    }
    cancel.cancel();
    let rest: Vec<_> = events.collect();
    let Some(Err(Error::Cancelled { done, total: 500 })) = rest.last() else {
        panic!("{:?}", rest.last())
    };
    assert!(*done < 100, "{done}");
    assert!(rest[..rest.len() - 1].iter().all(Result::is_ok));
    wait_for_end(&pipe);
}

#[test]
fn a_dropped_stream_ends_its_thread_and_leaves_the_pipeline_usable() {
    let pipe = load();
    for taken in [0, 1, 3] {
        let mut events = pipe.run_stream(edit().steps(500)).into_iter();
        assert_eq!(events.by_ref().take(taken).count(), taken);
        drop(events);
        wait_for_end(&pipe);
    }
    same(&pipe.run(&edit()).unwrap(), &PIPE.run(&edit()).unwrap());
}

#[test]
fn a_stopped_stream_has_no_thread_any_more() {
    let pipe = load();
    for taken in [0, 1, 3] {
        let mut events = pipe.run_stream(edit().steps(500)).into_iter();
        assert_eq!(events.by_ref().take(taken).count(), taken);
        events.stop();
        assert_eq!(Arc::strong_count(&pipe), 1);
    }
}

#[test]
fn streams_move_between_threads() {
    let expected = PIPE.run(&edit()).unwrap();
    let stream: RunStream = PIPE.run_stream(edit());
    let output = std::thread::spawn(move || checked(stream.into_iter().collect()))
        .join()
        .unwrap();
    same(&output, &expected);
}

/// Without a runtime: an executor of one task, on the test's thread.
#[cfg(feature = "async")]
mod asynchronous {
    use std::pin::{Pin, pin};
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::{Context, Poll, Wake, Waker};
    use std::thread::{self, Thread};

    use futures_core::Stream;

    use super::*;

    /// Wakes a parked thread, and counts.
    struct Unpark {
        thread: Thread,
        wakes: AtomicUsize,
    }

    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.wakes.fetch_add(1, Ordering::SeqCst);
            self.thread.unpark();
        }
    }

    fn unpark() -> Arc<Unpark> {
        Arc::new(Unpark {
            thread: thread::current(),
            wakes: AtomicUsize::new(0),
        })
    }

    /// Waits for the next item; parks until it is woken.
    fn next<S: Stream>(mut stream: Pin<&mut S>, wake: &Arc<Unpark>) -> Option<S::Item> {
        let waker = Waker::from(Arc::clone(wake));
        loop {
            let before = wake.wakes.load(Ordering::SeqCst);
            match stream.as_mut().poll_next(&mut Context::from_waker(&waker)) {
                Poll::Ready(item) => return item,
                Poll::Pending => {
                    while wake.wakes.load(Ordering::SeqCst) == before {
                        thread::park_timeout(Duration::from_secs(60));
                        assert!(wake.wakes.load(Ordering::SeqCst) > before, "the task was not woken");
                    }
                }
            }
        }
    }

    #[test]
    fn a_polled_stream_gives_the_events_and_bytes_of_a_run() {
        let wake = unpark();
        let mut stream = pin!(PIPE.run_stream(edit()));
        let items = std::iter::from_fn(|| next(stream.as_mut(), &wake)).collect();
        same(&checked(items), &PIPE.run(&edit()).unwrap());
        assert!(wake.wakes.load(Ordering::SeqCst) > 0);
        assert!(next(stream, &wake).is_none());
    }

    #[test]
    fn the_task_that_polled_last_is_woken() {
        let (first, last) = (unpark(), unpark());
        let mut stream = pin!(PIPE.run_stream(edit().steps(20)));
        let waker = Waker::from(Arc::clone(&first));
        // Nothing to read yet, or the plan.
        let early = stream.as_mut().poll_next(&mut Context::from_waker(&waker));
        let count = std::iter::from_fn(|| next(stream.as_mut(), &last)).count();
        // Planned, a warning, 20 steps, the image, the end.
        assert_eq!(count + usize::from(early.is_ready()), 24);
        assert!(first.wakes.load(Ordering::SeqCst) <= 1);
    }

    #[test]
    fn a_polled_stream_dropped_after_two_steps_ends_its_thread() {
        let pipe = load();
        let wake = unpark();
        let mut stream = Box::pin(pipe.run_stream(edit().steps(500)));
        for expected in ["planned 3", "warning", "step 1/500", "step 2/500"] {
            assert_eq!(name(&next(stream.as_mut(), &wake).unwrap().unwrap()), expected);
        }
        drop(stream);
        wait_for_end(&pipe);
    }
}
