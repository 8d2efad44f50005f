//! A ring of buffers, filled ahead in the order of the previous requests, or in a given one.
//!
//! A buffer has one owner at a time: the ring, the worker that fills it, or the caller that requested it. So
//! a buffer is never written while it is read; the order of later work on a device is up to the mover.

use std::collections::HashMap;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle, ThreadId};

use tch::Tensor;

use kontext_core::Result;

/// Number of threads whose last source is remembered, including ended ones.
const THREADS: usize = 64;

/// A source of bytes that the ring can prefetch.
pub(crate) trait Source: Send + Sync + 'static {
    fn bytes(&self) -> &[u8];
}

/// A transport of bytes into buffers. It belongs to the ring's worker; `wait` and `release` are called by the
/// requesting thread.
pub(crate) trait Mover: Sized + 'static {
    type Buffer: Send + 'static;

    /// Creates the ring's buffers.
    fn buffers(&mut self) -> Result<Vec<Self::Buffer>>;

    /// Starts the transfer of bytes into a buffer, after all work queued before its last release.
    fn begin(&mut self, bytes: &[u8], buffer: &mut Self::Buffer) -> Result<()>;

    /// Makes work queued by the caller from now on wait for the bytes.
    fn wait(buffer: &mut Self::Buffer) -> Result<()>;

    /// Marks the point at which all work that reads the buffer is queued.
    fn release(buffer: &mut Self::Buffer) -> Result<()>;

    /// Returns the buffer's content as u8: the bytes, followed by leftovers of earlier ones.
    fn content(buffer: &Self::Buffer) -> &Tensor;
}

/// The buffers, and the worker that fills them.
pub(crate) struct Ring<S: Source, M: Mover> {
    shared: Arc<Shared<S, M>>,
    jobs: Option<Sender<Job<S, M>>>,
    worker: Option<JoinHandle<()>>,
}

/// A buffer to be filled, and the slot to return it to.
struct Job<S, M: Mover> {
    slot: usize,
    source: Arc<S>,
    buffer: M::Buffer,
}

struct Shared<S, M: Mover> {
    state: Mutex<State<S, M>>,
    changed: Condvar,
}

struct State<S, M: Mover> {
    /// The slots; `None` until the worker has created its buffers.
    slots: Option<Vec<Slot<S, M>>>,
    /// Set after a failure of the worker or the device; requests are no longer served.
    broken: bool,
    /// The source that followed each source, by its address: sources are kept, so addresses stay valid.
    next: HashMap<usize, (Arc<S>, Arc<S>)>,
    /// The last request of each thread.
    last: HashMap<ThreadId, Arc<S>>,
    /// Counter of loans.
    clock: u64,
}

struct Slot<S, M: Mover> {
    source: Option<Arc<S>>,
    content: Content<M::Buffer>,
    lent_at: u64,
}

enum Content<B> {
    Here(B),
    /// Owned by the worker.
    Filling,
    /// Owned by the caller that requested it.
    Lent,
}

fn address<S>(source: &Arc<S>) -> usize {
    Arc::as_ptr(source).addr()
}

impl<S: Source, M: Mover> Ring<S, M> {
    /// Creates a ring whose mover is created on its worker. `order` is the expected order of the first requests, or
    /// empty.
    pub(crate) fn new(make: impl FnOnce() -> Result<M> + Send + 'static, order: &[Arc<S>]) -> Self {
        let next = order.windows(2).filter_map(|pair| match pair {
            [before, after] => Some((address(before), (Arc::clone(before), Arc::clone(after)))),
            _ => None,
        });
        let state = State {
            slots: None,
            broken: false,
            next: next.collect(),
            last: HashMap::new(),
            clock: 0,
        };
        let shared = Arc::new(Shared {
            state: Mutex::new(state),
            changed: Condvar::new(),
        });
        let (jobs, inbox) = channel();
        let for_worker = Arc::clone(&shared);
        let work = move || work(&for_worker, make, &inbox);
        let worker = thread::Builder::new().name("prefetch".to_owned()).spawn(work).ok();
        // A running worker may have set it already.
        shared.lock().broken |= worker.is_none();
        Self {
            shared,
            jobs: Some(jobs),
            worker,
        }
    }

    /// Passes the bytes of a source to `consume`, and prefetches the source that followed it the last time.
    /// Returns `None` without calling `consume` if the ring cannot serve: all buffers are lent, or something
    /// has failed before.
    pub(crate) fn with<T>(&self, source: &Arc<S>, consume: impl FnOnce(&Tensor) -> Result<T>) -> Option<Result<T>> {
        let (slot, mut buffer) = self.take(source)?;
        let result = match M::wait(&mut buffer) {
            Ok(()) => Some(consume(M::content(&buffer))),
            Err(_) => None,
        };
        let released = result.is_some() && M::release(&mut buffer).is_ok();
        let mut state = self.shared.lock();
        state.broken |= !released;
        if let Some(slot) = state.slots.as_mut().and_then(|slots| slots.get_mut(slot)) {
            slot.content = Content::Here(buffer);
        }
        drop(state);
        self.shared.changed.notify_all();
        result
    }

    /// Takes the buffer with a source's bytes out of its slot.
    fn take(&self, source: &Arc<S>) -> Option<(usize, M::Buffer)> {
        let mut state = self.shared.lock();
        state.learn(source);
        let taken = loop {
            if state.broken {
                return None;
            }
            let Some(slots) = &state.slots else {
                state = self.shared.wait(state);
                continue;
            };
            match slots.iter().position(|slot| slot.holds(source)) {
                Some(slot) => match state.lend(slot) {
                    Content::Here(buffer) => break (slot, buffer),
                    Content::Filling => state = self.shared.wait(state),
                    Content::Lent => return None,
                },
                None => self.fill(&mut state, source).then_some(())?,
            }
        };
        let following = state.next.get(&address(source)).map(|(_, next)| Arc::clone(next));
        if let Some(next) = following
            && !state.slots.iter().flatten().any(|slot| slot.holds(&next))
        {
            self.fill(&mut state, &next);
        }
        Some(taken)
    }

    /// Returns, for each slot, `true` if it is being filled.
    #[cfg(test)]
    pub(crate) fn filling(&self) -> Vec<bool> {
        self.shared
            .lock()
            .slots
            .iter()
            .flatten()
            .map(|slot| matches!(slot.content, Content::Filling))
            .collect()
    }

    /// Sends the least recently lent buffer to be filled. Returns `false` if none is available.
    fn fill(&self, state: &mut State<S, M>, source: &Arc<S>) -> bool {
        let slots = state.slots.iter_mut().flatten().enumerate();
        let here = slots.filter(|(_, slot)| matches!(slot.content, Content::Here(_)));
        let Some((index, slot)) = here.min_by_key(|(_, slot)| slot.lent_at) else {
            return false;
        };
        let Content::Here(buffer) = std::mem::replace(&mut slot.content, Content::Filling) else {
            return false;
        };
        slot.source = Some(Arc::clone(source));
        let job = Job {
            slot: index,
            source: Arc::clone(source),
            buffer,
        };
        state.broken |= self.jobs.as_ref().is_none_or(|jobs| jobs.send(job).is_err());
        true
    }
}

impl<S, M: Mover> Slot<S, M> {
    fn holds(&self, source: &Arc<S>) -> bool {
        self.source.as_ref().is_some_and(|own| Arc::ptr_eq(own, source))
    }
}

impl<S, M: Mover> State<S, M> {
    /// Records that this source followed the thread's previous one.
    fn learn(&mut self, source: &Arc<S>) {
        if self.last.len() > THREADS {
            self.last.clear();
        }
        let before = self.last.insert(thread::current().id(), Arc::clone(source));
        if let Some(before) = before.filter(|before| !Arc::ptr_eq(before, source)) {
            self.next.insert(address(&before), (before, Arc::clone(source)));
        }
    }

    /// Returns the content of a slot; an available buffer is lent.
    fn lend(&mut self, index: usize) -> Content<M::Buffer> {
        self.clock += 1;
        let clock = self.clock;
        let Some(slot) = self.slots.as_mut().and_then(|slots| slots.get_mut(index)) else {
            return Content::Lent;
        };
        match slot.content {
            Content::Here(_) => {
                slot.lent_at = clock;
                std::mem::replace(&mut slot.content, Content::Lent)
            }
            Content::Filling => Content::Filling,
            Content::Lent => Content::Lent,
        }
    }
}

impl<S, M: Mover> Shared<S, M> {
    /// Locks the state. A poisoned lock holds a state between two whole changes: no change panics midway.
    fn lock(&self) -> MutexGuard<'_, State<S, M>> {
        kontext_core::lock(&self.state)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State<S, M>>) -> MutexGuard<'a, State<S, M>> {
        self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }
}

/// Fills buffers until the ring is dropped or something fails.
fn work<S: Source, M: Mover>(shared: &Shared<S, M>, make: impl FnOnce() -> Result<M>, inbox: &Receiver<Job<S, M>>) {
    /// A guard that marks the ring as broken however the worker ends, so that no caller waits for it.
    struct End<'a, S, M: Mover>(&'a Shared<S, M>);
    impl<S, M: Mover> Drop for End<'_, S, M> {
        fn drop(&mut self) {
            self.0.lock().broken = true;
            self.0.changed.notify_all();
        }
    }
    let _end = End(shared);
    let Ok(mut mover) = make() else { return };
    let Ok(buffers) = mover.buffers() else { return };
    let slot = |buffer| Slot {
        source: None,
        content: Content::Here(buffer),
        lent_at: 0,
    };
    shared.lock().slots = Some(buffers.into_iter().map(slot).collect());
    shared.changed.notify_all();
    while let Ok(Job {
        slot,
        source,
        mut buffer,
    }) = inbox.recv()
    {
        let begun = mover.begin(source.bytes(), &mut buffer);
        let mut state = shared.lock();
        if let Some(slot) = state.slots.as_mut().and_then(|slots| slots.get_mut(slot)) {
            slot.content = Content::Here(buffer);
        }
        if begun.is_err() {
            return;
        }
        drop(state);
        shared.changed.notify_all();
    }
}

impl<S: Source, M: Mover> Drop for Ring<S, M> {
    /// Waits for the worker: the mover ends its copies before the buffers are freed.
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(worker) = self.worker.take() {
            let _ = worker.join();
        }
    }
}
