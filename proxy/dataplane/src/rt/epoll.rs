//! The epoll driver: a loop of tasks, of sockets that are ready, and of times.
//!
//! Readiness instead of completion: a task waits with nothing in the kernel's
//! hands, and whatever it waits for may be dropped at any time without losing a
//! byte. Every socket is registered once, edge-triggered, for all that it may
//! report, and then never touched again: what a request costs is the calls that
//! move its bytes, and one wait.
//!
//! What it lacks: wake-ups from other threads. A [`Waker`] of this loop does
//! nothing on another one; whoever wants to reach a core writes to a socket.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::future::{Future, poll_fn};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

/// Events taken by one wait. What is beyond it is taken by the next one.
const EVENTS_MAX: usize = 512;

/// The id of the future that [`Loop::run`] was given.
const MAIN: u64 = u64::MAX;

thread_local! {
    static CURRENT: RefCell<Option<Rc<Loop>>> = const { RefCell::new(None) };
}

/// One thread's tasks, sockets and times.
pub(super) struct Loop {
    epoll: OwnedFd,
    /// How long a wait looks for events before it lets the thread sleep. Being put to
    /// sleep and woken costs both this thread and whoever wakes it.
    busy_poll: Duration,
    events: RefCell<Vec<libc::epoll_event>>,
    sources: RefCell<Slots<Rc<Source>>>,
    tasks: RefCell<Slots<Rc<Task>>>,
    /// Tasks to be run, in order.
    ready: RefCell<VecDeque<u64>>,
    /// Counts tasks and times, so that each has a number of its own.
    numbers: Cell<u64>,
    timers: RefCell<BTreeMap<(Instant, u64), Waker>>,
}

type Body = Pin<Box<dyn Future<Output = ()>>>;

struct Task {
    /// Its place in the upper half, its number in the lower one: a wake-up that
    /// comes after its end does not meet the next one in its place.
    id: u64,
    /// `None` while it runs.
    body: Cell<Option<Body>>,
    handle: Arc<Handle>,
    waker: Waker,
}

/// What a task's wakers share.
struct Handle {
    id: u64,
    /// Whether it is among those to be run. Never touched by two threads at once: an
    /// atomic because a `Waker` might be.
    queued: AtomicBool,
}

impl Loop {
    /// A loop with nothing in it.
    ///
    /// # Errors
    /// As `epoll_create1(2)`.
    pub(super) fn new(busy_poll: Duration) -> io::Result<Rc<Self>> {
        // SAFETY: no memory is involved.
        let epoll = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
        if epoll < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Rc::new(Self {
            // SAFETY: the kernel has just given us this descriptor.
            epoll: unsafe { OwnedFd::from_raw_fd(epoll) },
            busy_poll,
            events: RefCell::new(Vec::with_capacity(EVENTS_MAX)),
            sources: RefCell::default(),
            tasks: RefCell::default(),
            ready: RefCell::default(),
            numbers: Cell::new(0),
            timers: RefCell::default(),
        }))
    }

    /// The loop that runs on this thread.
    pub(super) fn current() -> Option<Rc<Self>> {
        CURRENT.with_borrow(Clone::clone)
    }

    /// Runs `main` to its end. Tasks that have not ended by then are dropped.
    ///
    /// # Panics
    /// Inside another loop.
    pub(super) fn run<F: Future>(self: &Rc<Self>, main: F) -> F::Output {
        let _entered = Entered::new(self);
        let mut main = std::pin::pin!(main);
        let (handle, waker) = Handle::new(MAIN);
        waker.wake_by_ref();
        loop {
            // What is woken meanwhile runs too, but not for ever: sockets have their turn.
            let mut turns = 2 * self.ready.borrow().len();
            while turns > 0 {
                let Some(id) = self.ready.borrow_mut().pop_front() else {
                    break;
                };
                turns -= 1;
                if id == MAIN {
                    handle.queued.store(false, Ordering::Relaxed);
                    if let Poll::Ready(value) = main.as_mut().poll(&mut Context::from_waker(&waker))
                    {
                        return value;
                    }
                } else {
                    self.run_task(id);
                }
            }
            self.park();
        }
    }

    fn run_task(&self, id: u64) {
        let place = (id >> 32) as usize;
        let Some(task) = self.tasks.borrow().get(place).cloned() else {
            return;
        };
        if task.id != id {
            return;
        }
        task.handle.queued.store(false, Ordering::Relaxed);
        let Some(mut body) = task.body.take() else {
            return;
        };
        match body.as_mut().poll(&mut Context::from_waker(&task.waker)) {
            Poll::Pending => task.body.set(Some(body)),
            Poll::Ready(()) => {
                self.tasks.borrow_mut().remove(place);
            }
        }
    }

    /// Starts a task.
    pub(super) fn spawn(&self, body: impl Future<Output = ()> + 'static) {
        let number = self.number();
        let mut tasks = self.tasks.borrow_mut();
        let place = tasks.next();
        let id = (place as u64) << 32 | (number & u64::from(u32::MAX));
        let (handle, waker) = Handle::new(id);
        waker.wake_by_ref();
        tasks.insert(Rc::new(Task {
            id,
            body: Cell::new(Some(Box::pin(body))),
            handle,
            waker,
        }));
    }

    fn number(&self) -> u64 {
        let number = self.numbers.get();
        self.numbers.set(number + 1);
        number
    }

    /// Waits for events, and wakes whom they concern. Does not wait if there are
    /// tasks to be run.
    fn park(&self) {
        let wait = if self.ready.borrow().is_empty() {
            self.until_next_timer()
        } else {
            Some(Duration::ZERO)
        };
        if wait != Some(Duration::ZERO) && !self.busy_poll.is_zero() && self.look_for(wait) {
            return;
        }
        self.take_events(wait);
        self.wake_timers();
    }

    /// Looks for events without sleeping, for as long as is configured. `true` if
    /// there were some.
    fn look_for(&self, wait: Option<Duration>) -> bool {
        let limit = wait.map_or(self.busy_poll, |wait| wait.min(self.busy_poll));
        let begun = Instant::now();
        while begun.elapsed() < limit {
            if self.take_events(Some(Duration::ZERO)) > 0 {
                return true;
            }
            std::hint::spin_loop();
        }
        false
    }

    fn take_events(&self, wait: Option<Duration>) -> usize {
        // Rounded up: who wakes early would only wait again.
        let milliseconds = wait.map_or(-1, |wait| {
            i32::try_from(wait.as_nanos().div_ceil(1_000_000)).unwrap_or(i32::MAX)
        });
        let mut events = self.events.borrow_mut();
        events.clear();
        // SAFETY: pointer and length describe the buffer's capacity, all of it spare.
        let taken = unsafe {
            libc::epoll_wait(
                self.epoll.as_raw_fd(),
                events.as_mut_ptr(),
                EVENTS_MAX as libc::c_int,
                milliseconds,
            )
        };
        // Interrupted is as good as nothing: the loop comes back.
        let taken = usize::try_from(taken).unwrap_or(0);
        // SAFETY: the kernel has just written that many.
        unsafe { events.set_len(taken) };
        let sources = self.sources.borrow();
        for event in events.iter() {
            if let Some(source) = sources.get(event.u64 as usize) {
                source.report(event.events);
            }
        }
        taken
    }

    fn until_next_timer(&self) -> Option<Duration> {
        let timers = self.timers.borrow();
        let ((due, _), _) = timers.first_key_value()?;
        Some(due.saturating_duration_since(Instant::now()))
    }

    fn wake_timers(&self) {
        let mut timers = self.timers.borrow_mut();
        if timers.is_empty() {
            return;
        }
        let now = Instant::now();
        while let Some(first) = timers.first_entry()
            && first.key().0 <= now
        {
            first.remove().wake();
        }
    }

    /// Registers a socket for all that it may report. It stays open until the
    /// registration is dropped.
    ///
    /// # Errors
    /// As `epoll_ctl(2)`.
    pub(super) fn register(self: &Rc<Self>, fd: RawFd) -> io::Result<Registered> {
        self.register_for(fd, libc::EPOLLIN | libc::EPOLLOUT | libc::EPOLLRDHUP)
    }

    /// Registers a listening socket that other loops have registered too: of those
    /// that sleep, a connection wakes one.
    ///
    /// # Errors
    /// As `epoll_ctl(2)`.
    pub(super) fn register_shared(self: &Rc<Self>, fd: RawFd) -> io::Result<Registered> {
        self.register_for(fd, libc::EPOLLIN | libc::EPOLLEXCLUSIVE)
    }

    fn register_for(self: &Rc<Self>, fd: RawFd, events: libc::c_int) -> io::Result<Registered> {
        let source = Rc::new(Source {
            // Tried before it is waited for.
            readable: Cell::new(true),
            writable: Cell::new(true),
            ended: Cell::new(false),
            reader: Cell::new(None),
            writer: Cell::new(None),
        });
        let mut sources = self.sources.borrow_mut();
        let place = sources.next();
        let mut event = libc::epoll_event {
            events: (events | libc::EPOLLET) as u32,
            u64: place as u64,
        };
        // SAFETY: `event` outlives the call.
        let added = unsafe {
            libc::epoll_ctl(
                self.epoll.as_raw_fd(),
                libc::EPOLL_CTL_ADD,
                fd,
                &raw mut event,
            )
        };
        if added < 0 {
            return Err(io::Error::last_os_error());
        }
        sources.insert(Rc::clone(&source));
        Ok(Registered {
            home: Rc::clone(self),
            source,
            place,
            fd,
        })
    }
}

/// Waits. Dropped, it leaves nothing behind: a time that nobody waits for any more
/// would still be set and taken back around every sleep.
pub(super) async fn sleep(home: Rc<Loop>, duration: Duration) {
    let mut timer = Timer {
        key: (Instant::now() + duration, home.number()),
        home,
    };
    poll_fn(|context| timer.poll(context)).await;
}

struct Timer {
    home: Rc<Loop>,
    key: (Instant, u64),
}

impl Timer {
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let mut timers = self.home.timers.borrow_mut();
        if self.key.0 <= Instant::now() {
            timers.remove(&self.key);
            return Poll::Ready(());
        }
        timers.insert(self.key, context.waker().clone());
        Poll::Pending
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        self.home.timers.borrow_mut().remove(&self.key);
    }
}

/// Lets the other tasks run first.
pub(super) async fn yield_now() {
    let mut yielded = false;
    poll_fn(|context| {
        if std::mem::replace(&mut yielded, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// Makes a loop the current one for as long as it runs.
struct Entered<'a>(&'a Loop);

impl<'a> Entered<'a> {
    fn new(home: &'a Rc<Loop>) -> Self {
        CURRENT.with_borrow_mut(|current| {
            assert!(current.is_none(), "a loop runs on this thread already");
            *current = Some(Rc::clone(home));
        });
        Self(home)
    }
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        // Tasks hold sockets, and those the loop. What a task's end starts ends here too.
        loop {
            let tasks = self.0.tasks.take().entries;
            if tasks.is_empty() {
                break;
            }
            for task in tasks.into_iter().flatten() {
                drop(task.body.take());
            }
        }
        self.0.ready.borrow_mut().clear();
        CURRENT.set(None);
    }
}

impl Handle {
    fn new(id: u64) -> (Arc<Self>, Waker) {
        let handle = Arc::new(Self {
            id,
            queued: AtomicBool::new(false),
        });
        let waker = Waker::from(Arc::clone(&handle));
        (handle, waker)
    }
}

impl Wake for Handle {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        // Two steps instead of one locked instruction: one thread does both.
        if self.queued.load(Ordering::Relaxed) {
            return;
        }
        self.queued.store(true, Ordering::Relaxed);
        CURRENT.with_borrow(|current| {
            if let Some(current) = current {
                current.ready.borrow_mut().push_back(self.id);
            }
        });
    }
}

/// What is known of a socket since it was last found to have nothing.
pub(super) struct Source {
    readable: Cell<bool>,
    writable: Cell<bool>,
    /// The peer has finished, or the connection broke: from now on each receive
    /// says so, and no event tells it again.
    ended: Cell<bool>,
    reader: Cell<Option<Waker>>,
    writer: Cell<Option<Waker>>,
}

impl Source {
    fn report(&self, events: u32) {
        let any = |of: libc::c_int| events & of as u32 != 0;
        let broken = any(libc::EPOLLHUP | libc::EPOLLERR);
        if broken || any(libc::EPOLLRDHUP) {
            self.ended.set(true);
        }
        if broken || any(libc::EPOLLIN | libc::EPOLLRDHUP) {
            self.readable.set(true);
            self.wake_reader();
        }
        if broken || any(libc::EPOLLOUT) {
            self.writable.set(true);
            if let Some(writer) = self.writer.take() {
                writer.wake();
            }
        }
    }

    /// Wakes whoever waits for something to read, be there something or not.
    pub(super) fn wake_reader(&self) {
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
    }

    /// Whether a receive, or an accept, may find something.
    pub(super) fn poll_readable(&self, context: &mut Context<'_>) -> Poll<()> {
        if self.readable.get() {
            return Poll::Ready(());
        }
        wait_in(&self.reader, context);
        Poll::Pending
    }

    /// Waits until a receive, or an accept, may find something.
    pub(super) async fn readable(&self) {
        poll_fn(|context| self.poll_readable(context)).await;
    }

    /// Waits until a send may find room.
    pub(super) async fn writable(&self) {
        poll_fn(|context| {
            if self.writable.get() {
                return Poll::Ready(());
            }
            wait_in(&self.writer, context);
            Poll::Pending
        })
        .await;
    }

    /// There was nothing to be read, or no more than was taken: an event will tell of
    /// what comes next.
    pub(super) fn drained(&self) {
        self.readable.set(self.ended.get());
    }

    /// There was no room: an event will tell when there is.
    pub(super) fn filled(&self) {
        self.writable.set(false);
    }
}

fn wait_in(place: &Cell<Option<Waker>>, context: &Context<'_>) {
    let waker = match place.take() {
        Some(waker) if waker.will_wake(context.waker()) => waker,
        _ => context.waker().clone(),
    };
    place.set(Some(waker));
}

/// A socket's registration. Must be dropped before the socket is closed.
pub(super) struct Registered {
    home: Rc<Loop>,
    source: Rc<Source>,
    place: usize,
    fd: RawFd,
}

impl std::ops::Deref for Registered {
    type Target = Rc<Source>;

    fn deref(&self) -> &Rc<Source> {
        &self.source
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        // Closing takes a socket out only with its last duplicate.
        // SAFETY: no memory is involved; the kernel ignores the event.
        unsafe {
            libc::epoll_ctl(
                self.home.epoll.as_raw_fd(),
                libc::EPOLL_CTL_DEL,
                self.fd,
                std::ptr::null_mut(),
            )
        };
        self.home.sources.borrow_mut().remove(self.place);
    }
}

/// Values with numbers that are used again.
struct Slots<T> {
    entries: Vec<Option<T>>,
    free: Vec<usize>,
}

impl<T> Default for Slots<T> {
    fn default() -> Self {
        Self {
            entries: Vec::new(),
            free: Vec::new(),
        }
    }
}

impl<T> Slots<T> {
    fn get(&self, place: usize) -> Option<&T> {
        self.entries.get(place)?.as_ref()
    }

    /// The place that the next value will have.
    fn next(&self) -> usize {
        self.free.last().copied().unwrap_or(self.entries.len())
    }

    fn insert(&mut self, value: T) {
        match self.free.pop() {
            Some(place) => self.entries[place] = Some(value),
            None => self.entries.push(Some(value)),
        }
    }

    fn remove(&mut self, place: usize) -> Option<T> {
        let value = self.entries.get_mut(place)?.take();
        if value.is_some() {
            self.free.push(place);
        }
        value
    }
}

#[cfg(test)]
mod tests;
