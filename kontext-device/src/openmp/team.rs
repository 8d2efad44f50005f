//! The number of threads of the calling thread's computations.

use std::ffi::c_int;
use std::marker::PhantomData;

use super::library::Library;

/// A number of threads with which libtorch computes on the calling thread, until it is dropped.
///
/// Other threads keep theirs: `tch::set_num_threads` would also change that of every thread that calls libtorch
/// for the first time. It does so here where the OpenMP library cannot be reached (Windows).
#[derive(Debug)]
#[must_use = "the number is that of before as soon as this is dropped"]
pub struct Team {
    before: c_int,
    mkl_before: Option<c_int>,
    /// The number belongs to the thread.
    of_this_thread: PhantomData<*const ()>,
}

impl Team {
    /// Sets the number of threads, at least 1.
    ///
    /// # Example
    /// ```
    /// use kontext_device::openmp::Team;
    /// let before = tch::get_num_threads();
    /// let team = Team::of(1);
    /// assert_eq!(tch::get_num_threads(), 1);
    /// drop(team);
    /// assert_eq!(tch::get_num_threads(), before);
    /// ```
    pub fn of(threads: usize) -> Self {
        let threads = c_int::try_from(threads.max(1)).unwrap_or(c_int::MAX);
        // At its first use on a thread, libtorch sets the number by itself: here, and not later over ours.
        let before = tch::get_num_threads();
        let library = Library::loaded();
        set(library, threads);
        Self {
            before,
            mkl_before: library.set_mkl_threads(threads),
            of_this_thread: PhantomData,
        }
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        let library = Library::loaded();
        set(library, self.before);
        if let Some(before) = self.mkl_before {
            library.set_mkl_threads(before);
        }
    }
}

fn set(library: Library, threads: c_int) {
    // A program may have loaded several OpenMP libraries.
    if !library.set_threads(threads) || tch::get_num_threads() != threads {
        tch::set_num_threads(threads);
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn a_team_is_of_one_thread_and_ends_with_it() {
        // Threads of their own, whatever number the test's thread has.
        let default = thread::spawn(tch::get_num_threads).join().unwrap();
        thread::spawn(move || {
            let outer = Team::of(3);
            assert_eq!(tch::get_num_threads(), 3);
            {
                let _inner = Team::of(1);
                assert_eq!(tch::get_num_threads(), 1);
                // A thread that calls libtorch for the first time meanwhile.
                assert_eq!(thread::spawn(tch::get_num_threads).join().unwrap(), default);
            }
            assert_eq!(tch::get_num_threads(), 3);
            drop(outer);
            assert_eq!(tch::get_num_threads(), default);
            let _least = Team::of(0);
            assert_eq!(tch::get_num_threads(), 1);
        })
        .join()
        .unwrap();
    }

    #[test]
    fn matrix_products_follow_the_team_and_then_the_caller_again() {
        let mkl = |library: Library| {
            let set = library.set_mkl_threads(0)?;
            library.set_mkl_threads(set);
            Some(set)
        };
        let library = Library::loaded();
        assert!(mkl(library).is_some() || !cfg!(all(target_os = "linux", target_arch = "x86_64")));
        thread::spawn(move || {
            let before = mkl(library);
            let team = Team::of(5);
            assert!(mkl(library).is_none_or(|threads| threads == 5));
            drop(team);
            assert_eq!(mkl(library), before);
        })
        .join()
        .unwrap();
    }
}
