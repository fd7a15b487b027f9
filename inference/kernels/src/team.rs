//! The threads that compute together: a loop of a few microseconds is shared out in less than one.
//!
//! ```text
//! leader:  set the loop ─▶ open ─▶ take indices until none is left ─▶ close ─▶ wait for those who joined
//! others:  watch ─▶ join while it is open ─▶ take indices until none is left ─▶ leave ─▶ watch, then yield, then sleep
//! ```
//!
//! A loop that comes while another thread leads is run by its caller alone: two models on one machine share the processor instead of
//! waiting for each other. The same holds for a loop within a loop.

use std::{
    hint::spin_loop,
    marker::PhantomData,
    panic::{AssertUnwindSafe, catch_unwind},
    ptr,
    sync::{
        Condvar, Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering::*},
    },
    thread,
};

/// How often a thread looks for work before it lets others run, and how often it does that before it sleeps: together some hundred
/// microseconds, which is as long as the pauses within a step and between two steps.
const SPINS: u32 = 2_000;
const YIELDS: u32 = 200;

/// Set in `state` while the loop may be joined. Above it the loop's number, below it how many have joined.
const OPEN: u64 = 1 << 31;
const NUMBER: u64 = 1 << 32;
const JOINED: u64 = OPEN - 1;

/// How many threads compute together, the caller included.
pub fn threads() -> usize {
    Team::get().helpers + 1
}

/// Calls `body` once with every index below `count`, on all threads.
///
/// # Panics
///
/// If a call of `body` does, after all others have ended; not every index is then met.
pub fn each(count: usize, body: impl Fn(usize) + Sync) {
    Team::get().each(count, &body);
}

/// Cuts `values` into pieces of `size` and calls `body` once with every number of a piece and the piece, on all threads.
pub fn each_chunk<T: Send>(values: &mut [T], size: usize, body: impl Fn(usize, &mut [T]) + Sync) {
    let chunks = Chunks::new(values, size);
    // SAFETY: every index is met once.
    each(chunks.count(), |number| body(number, unsafe { chunks.get(number) }));
}

/// A slice whose pieces different threads write to.
pub(crate) struct Chunks<'a, T> {
    begin: *mut T,
    length: usize,
    size: usize,
    values: PhantomData<&'a mut [T]>,
}

// SAFETY: whoever calls `get` sees to it that each piece is in one place only.
unsafe impl<T: Send> Sync for Chunks<'_, T> {}

impl<'a, T> Chunks<'a, T> {
    /// Pieces of `size`; the last one may be shorter.
    pub(crate) fn new(values: &'a mut [T], size: usize) -> Self {
        assert!(size > 0, "pieces hold something");
        Self { begin: values.as_mut_ptr(), length: values.len(), size, values: PhantomData }
    }

    pub(crate) fn count(&self) -> usize {
        self.length.div_ceil(self.size)
    }

    /// One piece.
    ///
    /// # Safety
    ///
    /// No other reference to the same piece exists.
    #[expect(clippy::mut_from_ref, reason = "that is what it is for")]
    pub(crate) unsafe fn get(&self, number: usize) -> &mut [T] {
        let begin = number * self.size;
        assert!(begin < self.length, "a piece of the slice");
        let length = self.size.min(self.length - begin);
        // SAFETY: it lies within the slice, and nobody else has it.
        unsafe { std::slice::from_raw_parts_mut(self.begin.add(begin), length) }
    }
}

/// A loop, on its leader's stack.
struct Loop<'a> {
    count: usize,
    next: AtomicUsize,
    body: &'a (dyn Fn(usize) + Sync),
    panicked: AtomicBool,
}

impl Loop<'_> {
    fn take_part(&self) {
        let taken = catch_unwind(AssertUnwindSafe(|| {
            loop {
                let index = self.next.fetch_add(1, Relaxed);
                if index >= self.count {
                    return;
                }
                (self.body)(index);
            }
        }));
        if taken.is_err() {
            self.panicked.store(true, Relaxed);
            self.next.store(self.count, Relaxed);
        }
    }
}

struct Team {
    helpers: usize,
    led: AtomicBool,
    /// Invariant: points to a living loop while `state` is open or somebody has joined.
    current: AtomicPtr<Loop<'static>>,
    state: AtomicU64,
    sleepers: AtomicUsize,
    sleep: Mutex<()>,
    wake: Condvar,
}

impl Team {
    fn get() -> &'static Self {
        static TEAM: OnceLock<&'static Team> = OnceLock::new();
        TEAM.get_or_init(|| Self::start(thread::available_parallelism().map_or(1, usize::from)))
    }

    /// Starts threads that live as long as the process.
    fn start(threads: usize) -> &'static Self {
        let team: &'static Self = Box::leak(Box::new(Self {
            helpers: threads.saturating_sub(1),
            led: AtomicBool::new(false),
            current: AtomicPtr::new(ptr::null_mut()),
            state: AtomicU64::new(0),
            sleepers: AtomicUsize::new(0),
            sleep: Mutex::new(()),
            wake: Condvar::new(),
        }));
        for number in 1..threads {
            // Without it the others do its part.
            let _started = thread::Builder::new().name(format!("compute {number}")).spawn(|| team.help());
        }
        team
    }

    fn each(&self, count: usize, body: &(dyn Fn(usize) + Sync)) {
        if count <= 1 || self.helpers == 0 || self.led.swap(true, Acquire) {
            return (0..count).for_each(body);
        }
        let work = Loop { count, next: AtomicUsize::new(0), body, panicked: AtomicBool::new(false) };
        self.open(&work);
        work.take_part();
        self.close();
        self.led.store(false, Release);
        assert!(!work.panicked.into_inner(), "a part of the computation panicked");
    }

    fn open(&self, work: &Loop<'_>) {
        self.current.store(ptr::from_ref(work).cast_mut().cast(), Relaxed);
        // Only the leader changes number and flag, and nobody has joined: a plain store would do, but for the order with `sleepers`.
        self.state.fetch_add(NUMBER + OPEN, SeqCst);
        if self.sleepers.load(SeqCst) > 0 {
            let _sleep = self.sleep.lock().unwrap_or_else(PoisonError::into_inner);
            self.wake.notify_all();
        }
    }

    /// Lets nobody join any more, and waits for those who have.
    fn close(&self) {
        let mut state = self.state.fetch_sub(OPEN, AcqRel) - OPEN;
        let mut looks = 0;
        while state & JOINED > 0 {
            rest(&mut looks);
            state = self.state.load(Acquire);
        }
    }

    fn help(&self) -> ! {
        let (mut last, mut looks) = (0, 0);
        loop {
            if let Some(number) = self.join(last) {
                // SAFETY: the loop lives until all who joined it have left.
                unsafe { &*self.current.load(Relaxed) }.take_part();
                self.state.fetch_sub(1, Release);
                (last, looks) = (number, 0);
            } else if looks < SPINS + YIELDS {
                rest(&mut looks);
            } else {
                self.sleep(last);
                looks = 0;
            }
        }
    }

    /// Joins the loop, if it is open and not the `last` one. Its number.
    fn join(&self, last: u64) -> Option<u64> {
        let state = self.state.load(Acquire);
        let is_new = state & OPEN != 0 && state / NUMBER != last;
        let joined = is_new && self.state.compare_exchange(state, state + 1, AcqRel, Relaxed).is_ok();
        joined.then_some(state / NUMBER)
    }

    fn sleep(&self, last: u64) {
        let mut sleep = self.sleep.lock().unwrap_or_else(PoisonError::into_inner);
        self.sleepers.fetch_add(1, SeqCst);
        // A leader either finds this sleeper counted, or its loop is seen here.
        while !self.is_news(last) {
            sleep = self.wake.wait(sleep).unwrap_or_else(PoisonError::into_inner);
        }
        self.sleepers.fetch_sub(1, SeqCst);
    }

    fn is_news(&self, last: u64) -> bool {
        let state = self.state.load(SeqCst);
        state & OPEN != 0 && state / NUMBER != last
    }
}

/// Passes a moment: first on the processor, then by letting others have it.
fn rest(looks: &mut u32) {
    *looks = looks.saturating_add(1);
    if *looks < SPINS { spin_loop() } else { thread::yield_now() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_index_is_met_once() {
        for count in (0..40).chain([1_000, 100_000]) {
            let met: Vec<AtomicUsize> = std::iter::repeat_with(AtomicUsize::default).take(count).collect();
            each(count, |index| {
                met[index].fetch_add(1, Relaxed);
            });
            assert!(met.iter().all(|met| met.load(Relaxed) == 1), "{count}");
        }
    }

    #[test]
    fn many_short_loops_of_several_leaders_are_whole() {
        thread::scope(|scope| {
            for seed in 0..4 {
                scope.spawn(move || {
                    for round in 0..20_000 {
                        let count = (round * 7 + seed) % 23;
                        let sum = AtomicUsize::new(0);
                        each(count, |index| {
                            sum.fetch_add(index + 1, Relaxed);
                        });
                        assert_eq!(sum.into_inner(), count * (count + 1) / 2);
                        if round % 1_000 == 0 {
                            // Long enough for the others to fall asleep.
                            thread::sleep(std::time::Duration::from_millis(1));
                        }
                    }
                });
            }
        });
    }

    #[test]
    fn a_team_of_many_threads_is_whole() {
        let team = Team::start(9);
        for round in 0..5_000 {
            let mut values = vec![0; round % 50];
            let chunks = Chunks::new(&mut values, 1);
            // SAFETY: every index is met once.
            team.each(chunks.count(), &|index| unsafe { chunks.get(index) }[0] += index + 1);
            assert!(values.iter().enumerate().all(|(index, value)| *value == index + 1));
        }
    }

    #[test]
    fn loops_within_loops_are_whole() {
        let sum = AtomicUsize::new(0);
        each(10, |outer| {
            each(10, |inner| {
                sum.fetch_add(outer * 10 + inner, Relaxed);
            });
        });
        assert_eq!(sum.into_inner(), 99 * 100 / 2);
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_team_goes_on() {
        for at in [0, 1, 50, 99] {
            let caught = catch_unwind(|| each(100, |index| assert!(index != at, "asked to panic")));
            assert!(caught.is_err());
        }
        every_index_is_met_once();
    }

    #[test]
    fn pieces_are_the_slice() {
        let mut values: Vec<usize> = vec![0; 1_003];
        each_chunk(&mut values, 10, |number, piece| piece.iter_mut().for_each(|value| *value = number));
        assert!(values.iter().enumerate().all(|(index, value)| *value == index / 10));
    }
}
