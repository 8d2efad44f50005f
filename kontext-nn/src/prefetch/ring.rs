//! A ring of buffers that are filled ahead, in the order in which sources were asked for the last time.
//!
//! A buffer is owned by one side at a time: by the ring, by the worker that fills it, or by whoever asked for it. So
//! nothing is written that is read just now; what a device does later is the mover's affair.

use std::collections::HashMap;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle, ThreadId};

use tch::Tensor;

use kontext_core::Result;

/// Threads whose last source is remembered: those that have ended are among them.
const THREADS: usize = 64;

/// What is brought into a buffer.
pub(crate) trait Source: Send + Sync + 'static {
    fn bytes(&self) -> &[u8];
}

/// Brings bytes into buffers. It lives on the ring's worker; `wait` and `release` are called by whoever asked.
pub(crate) trait Mover: Sized + 'static {
    type Buffer: Send + 'static;

    /// The ring's buffers.
    fn buffers(&mut self) -> Result<Vec<Self::Buffer>>;

    /// Puts bytes on their way into a buffer, behind all that was queued before its last release.
    fn begin(&mut self, bytes: &[u8], buffer: &mut Self::Buffer) -> Result<()>;

    /// Lets what the caller queues from now on wait until the bytes are there.
    fn wait(buffer: &mut Self::Buffer) -> Result<()>;

    /// Tells that all that reads the buffer is queued.
    fn release(buffer: &mut Self::Buffer) -> Result<()>;

    /// u8: the bytes, and after them what was there before.
    fn content(buffer: &Self::Buffer) -> &Tensor;
}

/// The buffers, and the worker that fills them.
pub(crate) struct Ring<S: Source, M: Mover> {
    shared: Arc<Shared<S, M>>,
    jobs: Option<Sender<Job<S, M>>>,
    worker: Option<JoinHandle<()>>,
}

/// A buffer that is to be filled, and the slot to put it back in.
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
    /// None until the worker has made its buffers.
    slots: Option<Vec<Slot<S, M>>>,
    /// After the worker or the device has failed, nobody is served any more.
    broken: bool,
    /// What was asked for after a source, by its address: sources are kept, so addresses stay theirs.
    next: HashMap<usize, (Arc<S>, Arc<S>)>,
    /// What each thread asked for last.
    last: HashMap<ThreadId, Arc<S>>,
    /// Counts what was lent.
    clock: u64,
}

struct Slot<S, M: Mover> {
    source: Option<Arc<S>>,
    content: Content<M::Buffer>,
    lent_at: u64,
}

enum Content<B> {
    Here(B),
    /// With the worker.
    Filling,
    /// With whoever asked.
    Lent,
}

fn address<S>(source: &Arc<S>) -> usize {
    Arc::as_ptr(source).addr()
}

impl<S: Source, M: Mover> Ring<S, M> {
    /// A ring whose mover is made on its worker.
    pub(crate) fn new(make: impl FnOnce() -> Result<M> + Send + 'static) -> Self {
        let state = State {
            slots: None,
            broken: false,
            next: HashMap::new(),
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
        // A worker that is there may have said so itself by now.
        shared.lock().broken |= worker.is_none();
        Self {
            shared,
            jobs: Some(jobs),
            worker,
        }
    }

    /// Hands the bytes of a source to `consume`, and puts the source that was asked for after it the last time on its
    /// way. `None` where the ring cannot serve: all buffers are lent, or something has failed before; `consume` was not
    /// called then.
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

    /// The buffer with a source's bytes, out of its slot.
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

    /// Which slots are being filled just now.
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

    /// Sends the buffer that was lent longest ago to be filled. False where none is here.
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
    /// Remembers what this thread asked for before.
    fn learn(&mut self, source: &Arc<S>) {
        if self.last.len() > THREADS {
            self.last.clear();
        }
        let before = self.last.insert(thread::current().id(), Arc::clone(source));
        if let Some(before) = before.filter(|before| !Arc::ptr_eq(before, source)) {
            self.next.insert(address(&before), (before, Arc::clone(source)));
        }
    }

    /// What is in a slot; a buffer that is here is lent.
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
    /// A poisoned lock holds a state between two whole changes: nothing within them panics.
    fn lock(&self) -> MutexGuard<'_, State<S, M>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State<S, M>>) -> MutexGuard<'a, State<S, M>> {
        self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }
}

/// Fills buffers until the ring is dropped or something fails.
fn work<S: Source, M: Mover>(shared: &Shared<S, M>, make: impl FnOnce() -> Result<M>, inbox: &Receiver<Job<S, M>>) {
    /// Whatever ends the worker, nobody waits for it any longer.
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
    /// The mover ends its copies before the buffers go.
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(worker) = self.worker.take() {
            let _ = worker.join();
        }
    }
}
