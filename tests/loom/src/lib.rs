//! The parts of the switch that share memory without a lock, compiled over loom instead of the
//! standard library: loom runs a test in all orders in which its threads' accesses can happen, and
//! lets a load see each value that the memory model of Rust (C++20's) allows, so also what only
//! weaker processors than x86 do.
//!
//! These are the sources themselves. They name what they share by `sys::sync`, which is another
//! module here; what else they need of the switch is imitated below.

/// `sys::slot`: the table of mappings, which a signal handler reads.
#[path = "../../../src/sys/slot.rs"]
pub mod slot;

/// `table::mac`.
#[path = "../../../src/table/mac.rs"]
pub mod mac;

/// `worker::mailbox`.
#[path = "../../../src/worker/mailbox.rs"]
pub mod mailbox;

/// As far as mailboxes need it.
pub mod frame {
    /// A port.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct PortId(pub u16);
}

pub use sys::sync;

/// `sys`, imitated.
pub mod sys {
    /// As `crate::sys::sync`, of loom.
    pub mod sync {
        pub use loom::sync::atomic::{
            AtomicBool, AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence,
        };

        /// parking_lot's lock, as far as it is used. Of an atomic word, since loom tries no order in
        /// which its own lock is found taken by `try_lock`.
        #[derive(Debug, Default)]
        pub struct Mutex<T> {
            taken: AtomicBool,
            /// Never contended.
            value: loom::sync::Mutex<T>,
        }

        /// A lock that is held.
        pub struct MutexGuard<'a, T> {
            value: Option<loom::sync::MutexGuard<'a, T>>,
            taken: &'a AtomicBool,
        }

        impl<T> Mutex<T> {
            pub fn new(value: T) -> Self {
                Self { taken: AtomicBool::new(false), value: loom::sync::Mutex::new(value) }
            }

            pub fn lock(&self) -> MutexGuard<'_, T> {
                loop {
                    match self.try_lock() {
                        Some(guard) => return guard,
                        None => loom::thread::yield_now(),
                    }
                }
            }

            pub fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
                let orders = (Ordering::Acquire, Ordering::Relaxed);
                self.taken.compare_exchange(false, true, orders.0, orders.1).ok()?;
                let value = self.value.try_lock().expect("the word was taken");
                Some(MutexGuard { value: Some(value), taken: &self.taken })
            }
        }

        impl<T> Drop for MutexGuard<'_, T> {
            fn drop(&mut self) {
                self.value = None;
                self.taken.store(false, Ordering::Release);
            }
        }

        impl<T> std::ops::Deref for MutexGuard<'_, T> {
            type Target = T;

            fn deref(&self) -> &T {
                self.value.as_ref().expect("held")
            }
        }

        impl<T> std::ops::DerefMut for MutexGuard<'_, T> {
            fn deref_mut(&mut self) -> &mut T {
                self.value.as_mut().expect("held")
            }
        }
    }

    /// A hint, which changes nothing.
    pub mod prefetch {
        pub fn read<T>(_: *const T) {}
    }

    /// epoll and an eventfd: a wake-up is seen by one wait, which is the one that runs or the next.
    pub mod poller {
        use std::io;

        use loom::sync::{Arc, Condvar, Mutex};

        /// Whether there was a wake-up since the last wait.
        #[derive(Debug, Default)]
        struct Event(Mutex<bool>, Condvar);

        /// Where a worker sleeps.
        #[derive(Debug, Default)]
        pub struct Poller(Arc<Event>);

        /// Ends the sleep.
        #[derive(Debug)]
        pub struct Waker(Arc<Event>);

        impl Poller {
            pub fn new() -> io::Result<Self> {
                Ok(Self::default())
            }

            /// Looks, without waiting; forgets what there was.
            pub fn look(&self) -> bool {
                std::mem::take(&mut *self.0.0.lock().expect("nobody panicked"))
            }

            /// Sleeps until there is a wake-up; others run meanwhile in any case.
            pub fn wait(&self) {
                loom::thread::yield_now();
                let mut woken = self.0.0.lock().expect("nobody panicked");
                while !std::mem::take(&mut *woken) {
                    woken = self.0.1.wait(woken).expect("nobody panicked");
                }
            }
        }

        impl Waker {
            pub fn new(poller: &Poller, _: u64) -> io::Result<Self> {
                Ok(Self(Arc::clone(&poller.0)))
            }

            pub fn wake(&self) {
                *self.0.0.lock().expect("nobody panicked") = true;
                self.0.1.notify_one();
            }
        }
    }
}
