//! Runs on a thread of their own, as streams of owned events.

mod channel;
mod event;

use std::ops::ControlFlow;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use kontext_core::{Error, Result, contain, threads};

use self::channel::{Receiver, Sender};
pub use self::event::StreamEvent;
use crate::{Cancel, Event, IntoImage, Output, Pipeline, Request};

/// Capacity in events. A run waits while its channel is full.
const CAPACITY: usize = 16;

/// The callback of a run.
type Observer<'a> = &'a mut dyn FnMut(Event<'_>) -> ControlFlow<()>;

/// The events of a run on a thread of its own, and at the end its [`Output`].
///
/// A loop over it blocks for each event. The last item is [`StreamEvent::Done`] or an error, which also reports
/// a panic of the run. Dropping the stream cancels the run: its thread ends after the step that it computes. A
/// program that exits in that time may crash, because libtorch is destroyed under the thread; [`RunStream::stop`]
/// waits for its end. A run waits for a consumer that is more than 16 events late.
///
/// With the feature `async` it implements `futures_core::Stream`, for any executor. It is not an [`Iterator`]
/// itself, because `next` would be ambiguous next to that of `StreamExt`.
///
/// # Example
/// ```
/// # let folder = tempfile::tempdir().unwrap();
/// # kontext::random_model(folder.path(), 7, kontext::Layout::Diffusers)?;
/// # let pipe = kontext::Pipeline::builder().device(kontext::Device::Cpu).load(folder.path())?;
/// use std::sync::Arc;
/// use kontext::{Request, StreamEvent};
/// let pipe = Arc::new(pipe);
/// let (mut steps, mut output) = (0, None);
/// for event in pipe.run_stream(Request::generate("a cat").size(32, 32).steps(2)) {
///     match event? {
///         StreamEvent::Step { done, .. } => steps = done,
///         StreamEvent::Done(result) => output = Some(result),
///         _ => {}
///     }
/// }
/// assert_eq!(steps, 2);
/// assert_eq!(output.unwrap().image.dimensions(), (32, 32));
/// # Ok::<(), kontext::Error>(())
/// ```
#[derive(Debug)]
#[must_use = "dropping a stream cancels its run"]
pub struct RunStream {
    events: Receiver<Result<StreamEvent>>,
    cancel: Cancel,
    thread: Option<JoinHandle<()>>,
}

/// The blocking iterator of a [`RunStream`].
#[derive(Debug)]
pub struct RunStreamIter(RunStream);

impl Pipeline {
    /// Starts a run on a thread of its own and returns its events.
    ///
    /// An error is the stream's last item: those of [`Pipeline::run`], [`Error::Cancelled`], and
    /// [`Error::Thread`] for a thread that cannot start or panics.
    pub fn run_stream(self: &Arc<Self>, request: Request) -> RunStream {
        let pipe = Arc::clone(self);
        RunStream::start(move |observe| pipe.run_with(&request, observe))
    }

    /// Starts an edit as [`Pipeline::run_stream`] does, with the default options.
    pub fn edit_stream(self: &Arc<Self>, image: impl IntoImage, prompt: impl Into<String>) -> RunStream {
        self.run_stream(Request::edit(image, prompt))
    }
}

impl RunStreamIter {
    /// Cancels the run and waits until its thread has ended, as [`RunStream::stop`].
    pub fn stop(self) {
        self.0.stop();
    }
}

impl RunStream {
    /// Starts `run` on a thread.
    fn start(run: impl FnOnce(Observer<'_>) -> Result<Output> + Send + 'static) -> Self {
        let (sender, events) = channel::bounded(CAPACITY);
        let cancel = Cancel::new();
        let switch = cancel.clone();
        let thread = thread::Builder::new().name("kontext-run".to_owned());
        match thread.spawn(move || work(run, &sender, &switch)) {
            Ok(thread) => Self {
                events,
                cancel,
                thread: Some(thread),
            },
            Err(error) => {
                let (sender, events) = channel::bounded(CAPACITY);
                sender.send_last(Err(threads::refusal("the run", &error.to_string(), None)));
                Self {
                    events,
                    cancel,
                    thread: None,
                }
            }
        }
    }

    /// Cancels the run and waits until its thread has ended, which takes up to a step.
    pub fn stop(mut self) {
        self.cancel.cancel();
        // Its channel is full if the consumer is late.
        while self.events.receive().is_some() {}
        self.join();
    }

    /// Waits for a thread that has sent its last item.
    fn join(&mut self) {
        if let Some(thread) = self.thread.take() {
            // Panics of the run are contained; there is nothing to report.
            let _ = thread.join();
        }
    }

    /// Returns the switch that cancels the run after its current step. The last item is then
    /// [`Error::Cancelled`].
    #[must_use]
    pub fn canceller(&self) -> Cancel {
        self.cancel.clone()
    }
}

impl Drop for RunStream {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

impl IntoIterator for RunStream {
    type Item = Result<StreamEvent>;
    type IntoIter = RunStreamIter;

    fn into_iter(self) -> RunStreamIter {
        RunStreamIter(self)
    }
}

impl Iterator for RunStreamIter {
    type Item = Result<StreamEvent>;

    fn next(&mut self) -> Option<Self::Item> {
        let item = self.0.events.receive();
        if item.is_none() {
            self.0.join();
        }
        item
    }
}

#[cfg(feature = "async")]
impl futures_core::Stream for RunStream {
    type Item = Result<StreamEvent>;

    fn poll_next(
        self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Self::Item>> {
        self.events.poll(context)
    }
}

/// Runs on the stream's thread. What `run` owns is dropped before its last item is sent.
fn work(run: impl FnOnce(Observer<'_>) -> Result<Output>, sender: &Sender<Result<StreamEvent>>, cancel: &Cancel) {
    let mut observe = |event: Event<'_>| {
        cancel.check()?;
        if let Some(event) = StreamEvent::of(&event) {
            sender.send(Ok(event))?;
        }
        cancel.check()
    };
    let observe: Observer<'_> = &mut observe;
    let result = contain(move || run(observe));
    sender.send_last(match result {
        Ok(result) => result.map(StreamEvent::Done),
        Err(message) => Err(Error::Thread {
            reason: format!("it panicked: {message}"),
        }),
    });
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::{Duration, Instant};

    use super::*;
    use crate::{Device, ModelSizes};

    fn pipe() -> Arc<Pipeline> {
        let builder = Pipeline::builder().device(Device::Cpu);
        Arc::new(builder.random(&ModelSizes::small(), 7).unwrap())
    }

    fn request(steps: usize) -> Request {
        Request::generate("a cat").size(32, 32).steps(steps).seed(1)
    }

    /// Waits until the run's thread has dropped its share of the pipeline.
    fn wait_for_end(pipe: &Arc<Pipeline>) {
        let start = Instant::now();
        while Arc::strong_count(pipe) > 1 {
            assert!(start.elapsed() < Duration::from_secs(60), "the thread still runs");
            thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn a_stream_dropped_after_two_steps_ends_its_run() {
        const STEPS: usize = 200;
        let pipe = pipe();
        let computed = Arc::new(AtomicUsize::new(0));
        let (own, count) = (Arc::clone(&pipe), Arc::clone(&computed));
        let mut stream = RunStream::start(move |observe| {
            own.run_with(&request(STEPS), |event| {
                count.fetch_add(usize::from(matches!(event, Event::Step { .. })), Ordering::Relaxed);
                observe(event)
            })
        })
        .into_iter();
        assert!(matches!(stream.next(), Some(Ok(StreamEvent::Planned { seed: 1, .. }))));
        for step in 1..=2 {
            assert!(matches!(stream.next(), Some(Ok(StreamEvent::Step { done, .. })) if done == step));
        }
        drop(stream);
        wait_for_end(&pipe);
        // The channel's events, one that waited, and one step that ran when the stream was dropped.
        let computed = computed.load(Ordering::Relaxed);
        assert!((2..=2 + CAPACITY + 2).contains(&computed), "{computed}");
    }

    #[test]
    fn a_run_waits_for_a_consumer_that_is_late() {
        let pipe = pipe();
        let sent = Arc::new(AtomicUsize::new(0));
        let (own, count) = (Arc::clone(&pipe), Arc::clone(&sent));
        let stream = RunStream::start(move |observe| {
            own.run_with(&request(2 * CAPACITY), |event| {
                let flow = observe(event);
                count.fetch_add(1, Ordering::Relaxed);
                flow
            })
        });
        // Planned, Encoded, Noise and steps: two of them are not sent.
        while sent.load(Ordering::Relaxed) < CAPACITY + 2 {
            thread::sleep(Duration::from_millis(1));
        }
        // A run that does not wait would end in this time; one that waits never goes on, on any machine.
        thread::sleep(Duration::from_millis(200));
        assert_eq!(sent.load(Ordering::Relaxed), CAPACITY + 2);
        let events: Vec<_> = stream.into_iter().collect::<Result<_>>().unwrap();
        assert_eq!(events.len(), 1 + 2 * CAPACITY + 2);
        assert!(matches!(events.last(), Some(StreamEvent::Done(_))));
    }

    #[test]
    fn a_panic_is_the_last_item() {
        let pipe = pipe();
        let own = Arc::clone(&pipe);
        let stream = RunStream::start(move |observe| {
            own.run_with(&request(4), |event| {
                assert!(!matches!(event, Event::Step { done: 2, .. }), "step two");
                observe(event)
            })
        });
        let items: Vec<_> = stream.into_iter().collect();
        assert_eq!(items.len(), 3); // Planned, the first step, the panic
        let error = items.last().unwrap().as_ref().unwrap_err().to_string();
        assert_eq!(error, "a thread failed: it panicked: step two");
        // The thread's share is dropped before the last item is sent, and the pipeline still runs.
        assert_eq!(Arc::strong_count(&pipe), 1);
        assert!(pipe.run(&request(1)).is_ok());
    }
}
