//! The lines that a user types, read while the program works, and the requests to end that do not come as
//! lines.

use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use anyhow::Context;

use crate::interrupt;
use crate::typed;

/// Lines that are read ahead.
const AHEAD: usize = 16;
/// Bytes of the buffer of lines.
const BUFFER: usize = 1 << 13;

/// The next input of the user.
#[derive(Debug)]
pub enum Input {
    /// A line without its end; an error for one that is not UTF-8.
    Line(anyhow::Result<String>),
    /// The end of the input.
    End,
    /// The terminal is gone or cannot be read, or the system asks the program to end (SIGHUP, SIGTERM).
    Gone(Option<io::Error>),
}

/// The lines of stdin. A thread reads them, so that a request to end is seen also while the program waits for
/// a line that never comes.
#[derive(Debug)]
pub struct Lines {
    messages: Receiver<Message>,
    gone: Arc<AtomicBool>,
}

#[derive(Debug)]
enum Message {
    Read(io::Result<Option<anyhow::Result<String>>>),
    /// The flag is set.
    Wake,
}

impl Lines {
    /// Starts to read stdin. `leave` is called on a thread of its own when the system asks the program to end:
    /// it cancels what the program does.
    ///
    /// # Errors
    /// If the system refuses a thread or a signal handler.
    pub fn of_stdin(leave: impl Fn() + Send + 'static) -> anyhow::Result<Self> {
        let (sender, messages) = sync_channel(AHEAD);
        let waker = sender.clone();
        let gone = interrupt::on_termination(move || {
            leave();
            // A full channel needs no wake: the flag is read before the next message.
            let _ = waker.try_send(Message::Wake);
        })?;
        read_lines(io::stdin(), sender)?;
        Ok(Self { messages, gone })
    }

    /// Returns the flag that is set once the system has asked the program to end.
    #[must_use]
    pub fn gone(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.gone)
    }

    /// Waits for the next input.
    pub fn next(&self) -> Input {
        loop {
            if self.gone.load(Ordering::Acquire) {
                return Input::Gone(None);
            }
            match self.messages.recv() {
                Ok(Message::Wake) => {}
                Ok(Message::Read(Ok(Some(line)))) => return Input::Line(line),
                Ok(Message::Read(Ok(None))) => {
                    // Both come if a terminal is closed.
                    return if self.gone.load(Ordering::Acquire) {
                        Input::Gone(None)
                    } else {
                        Input::End
                    };
                }
                Ok(Message::Read(Err(error))) => return Input::Gone(Some(error)),
                Err(_) => return Input::End,
            }
        }
    }
}

/// Starts a thread that sends the lines of a reader, and ends with it or when nobody waits any more.
fn read_lines(reader: impl Read + Send + 'static, sender: SyncSender<Message>) -> anyhow::Result<()> {
    let read = move || {
        let mut reader = io::BufReader::with_capacity(BUFFER, reader);
        loop {
            let line = typed::line(&mut reader);
            let last = !matches!(line, Ok(Some(_)));
            if sender.send(Message::Read(line)).is_err() || last {
                return;
            }
        }
    };
    let thread = std::thread::Builder::new().name("stdin".to_owned()).spawn(read);
    thread
        .map(drop)
        .context("cannot start the thread that reads the standard input")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &'static str) -> Lines {
        let (sender, messages) = sync_channel(AHEAD);
        read_lines(text.as_bytes(), sender).unwrap();
        Lines {
            messages,
            gone: Arc::default(),
        }
    }

    #[test]
    fn lines_come_in_order_up_to_the_end() {
        let lines = lines("one\ntwo\n");
        for expected in ["one", "two"] {
            assert!(matches!(lines.next(), Input::Line(Ok(line)) if line == expected));
        }
        assert!(matches!(lines.next(), Input::End));
        assert!(matches!(lines.next(), Input::End));
    }

    #[test]
    fn a_request_to_end_comes_before_lines_that_wait() {
        let lines = lines("one\ntwo\n");
        lines.gone.store(true, Ordering::Release);
        assert!(matches!(lines.next(), Input::Gone(None)));
    }
}
