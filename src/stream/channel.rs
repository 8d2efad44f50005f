//! A bounded channel from a thread to one consumer, which blocks or is polled.

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::Waker;
#[cfg(feature = "async")]
use std::task::{Context, Poll};

/// The sending half. Dropping it ends the channel.
#[derive(Debug)]
pub(super) struct Sender<T>(Arc<Shared<T>>);

/// The receiving half.
#[derive(Debug)]
pub(super) struct Receiver<T>(Arc<Shared<T>>);

#[derive(Debug)]
struct Shared<T> {
    capacity: usize,
    state: Mutex<State<T>>,
    changed: Condvar,
}

#[derive(Debug)]
struct State<T> {
    items: VecDeque<T>,
    sender_gone: bool,
    receiver_gone: bool,
    /// Of the task that polled last and got nothing.
    waker: Option<Waker>,
}

/// Creates a channel that holds `capacity` items.
pub(super) fn bounded<T>(capacity: usize) -> (Sender<T>, Receiver<T>) {
    let shared = Arc::new(Shared {
        capacity,
        state: Mutex::new(State {
            items: VecDeque::new(),
            sender_gone: false,
            receiver_gone: false,
            waker: None,
        }),
        changed: Condvar::new(),
    });
    (Sender(Arc::clone(&shared)), Receiver(shared))
}

impl<T> Shared<T> {
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        kontext_core::lock(&self.state)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State<T>>) -> MutexGuard<'a, State<T>> {
        self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the state and wakes the other half; a task is woken without the lock.
    fn change(&self, mut state: MutexGuard<'_, State<T>>, change: impl FnOnce(&mut State<T>)) {
        change(&mut state);
        let waker = state.waker.take();
        drop(state);
        self.changed.notify_all();
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl<T> Sender<T> {
    /// Sends an item, and waits while the channel is full. Breaks if the receiver is gone.
    pub(super) fn send(&self, item: T) -> ControlFlow<()> {
        let mut state = self.0.lock();
        while state.items.len() >= self.0.capacity && !state.receiver_gone {
            state = self.0.wait(state);
        }
        if state.receiver_gone {
            return ControlFlow::Break(());
        }
        self.0.change(state, |state| state.items.push_back(item));
        ControlFlow::Continue(())
    }

    /// Sends an item without waiting, also to a full channel.
    pub(super) fn send_last(&self, item: T) {
        let state = self.0.lock();
        if !state.receiver_gone {
            self.0.change(state, |state| state.items.push_back(item));
        }
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        self.0.change(self.0.lock(), |state| state.sender_gone = true);
    }
}

impl<T> Receiver<T> {
    /// Waits for the next item; `None` after the last.
    pub(super) fn receive(&self) -> Option<T> {
        let mut state = self.0.lock();
        while state.items.is_empty() && !state.sender_gone {
            state = self.0.wait(state);
        }
        let item = state.items.pop_front();
        drop(state);
        self.0.changed.notify_all();
        item
    }

    /// Returns the next item, `None` after the last; registers the task's waker if there is none yet.
    #[cfg(feature = "async")]
    pub(super) fn poll(&self, context: &Context<'_>) -> Poll<Option<T>> {
        let mut state = self.0.lock();
        match state.items.pop_front() {
            None if !state.sender_gone => {
                state.waker = Some(context.waker().clone());
                Poll::Pending
            }
            item => {
                drop(state);
                self.0.changed.notify_all();
                Poll::Ready(item)
            }
        }
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.receiver_gone = true;
        let items = std::mem::take(&mut state.items);
        drop(state);
        self.0.changed.notify_all();
        drop(items);
    }
}
