//! The simulated driver: an executor whose order is drawn, a clock that jumps, and sockets
//! without a kernel, for [`crate::simulation`]. Test builds only.
//!
//! One [`World`] runs on a thread. Everything that happens in it follows from its seed: which of
//! the tasks that could run does, how messages are cut and how long their pieces travel, how
//! much a receive brings and how much a send takes. Time passes only when nobody can run.
//!
//! A socket behaves as Linux's do where the data plane leans on it: what arrived is read before
//! the end or the reset behind it; closing with bytes unread, or with [`super::reset_on_close`],
//! is a reset; bytes for a closed socket are answered by one; a sender waits while the receiver's
//! window is full. A world that [lends](Setup::lends) behaves as io_uring does: a receive that
//! was dropped takes what comes next with it, and one that is stopped says `ECANCELED`.
//!
//! What it lacks: the kernel. Registrations, flags and errno of the real drivers have tests of
//! their own.

use std::backtrace::Backtrace;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::future::{Future, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

/// The first simulated descriptor; no process has as many real ones.
const FIRST_FD: RawFd = 1 << 24;

/// So many bytes of each direction of a connection travel alone: some heads and their records'
/// borders. Each costs an event, so that bodies must not.
const SINGLE_BYTES: usize = 300;

/// The id of the future that [`World::run`] was given.
const MAIN: u64 = u64::MAX;

thread_local! {
    static CURRENT: RefCell<Option<Rc<World>>> = const { RefCell::new(None) };
}

/// Numbers that follow from a seed (splitmix64).
pub struct Random(Cell<u64>);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(Cell::new(seed))
    }

    pub fn next(&self) -> u64 {
        let state = self.0.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
        self.0.set(state);
        let mut mixed = state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// One of `0..bound`; 0 if that is empty.
    pub fn below(&self, bound: usize) -> usize {
        if bound == 0 {
            return 0;
        }
        (self.next() % bound as u64) as usize
    }

    /// One of `range`, its end included.
    pub fn within(&self, range: std::ops::RangeInclusive<usize>) -> usize {
        range.start() + self.below(range.end() - range.start() + 1)
    }

    /// True once in `of` times.
    pub fn one_in(&self, of: usize) -> bool {
        self.below(of) == 0
    }

    pub fn one_of<'a, T>(&self, of: &'a [T]) -> &'a T {
        &of[self.below(of.len())]
    }
}

/// How messages are cut on their way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// Not at all.
    Whole,
    /// Into pieces of any length.
    Somewhere,
    /// Into single bytes, as far as [`SINGLE_BYTES`] go; then as `Somewhere`.
    Everywhere,
}

/// What a world is like, for as long as it lasts.
#[derive(Debug, Clone, Copy)]
pub struct Setup {
    /// Receives lend their buffer to the kernel, as on io_uring; if not, they wait for
    /// readiness, as on epoll.
    pub lends: bool,
    pub cut: Cut,
    /// A receive may bring less, and a send take less, than it could.
    pub is_stingy: bool,
    /// A piece travels for so long at most.
    pub latency_max: Duration,
    /// Bytes that may be under way and unread in one direction.
    pub window: usize,
    /// The same towards callers.
    pub window_down: usize,
    /// Receives that are stopped lose what has arrived: for a control of the simulation.
    pub loses_at_stop: bool,
}

/// Looks on, and plays what is outside.
pub trait Outside {
    /// Our side has written `bytes` to a socket, and the kernel has taken them.
    fn written(&self, link: &Link, bytes: &[u8]);
    /// Our side connects to `address`.
    fn reception(&self, address: SocketAddr) -> Reception;
    /// It is connected, and this is the other end.
    fn connected(&self, address: SocketAddr, end: End);
    /// A task has had its turn. `false` ends the run.
    fn step(&self) -> bool;
}

/// What becomes of a connect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reception {
    Accept,
    Refuse,
    /// No answer, ever.
    Silence,
}

/// Why a run ended before its main future did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stuck {
    /// [`Outside::step`] said so.
    Ended,
    /// Nobody can run, and no time is waited for.
    Deadlock,
    /// More virtual time has passed than was allowed.
    TimeIsUp,
}

type Body = Pin<Box<dyn Future<Output = ()>>>;

struct Task {
    is_ours: bool,
    /// `None` while it runs.
    body: Cell<Option<Body>>,
    handle: Arc<Handle>,
    waker: Waker,
}

struct Handle {
    id: u64,
    queued: AtomicBool,
}

enum Event {
    Wake(Waker),
    /// The first piece under way towards this side has arrived.
    Arrival(Rc<Link>, Side),
}

/// One thread's simulated machine and network.
pub struct World {
    pub random: Random,
    setup: Setup,
    base: Instant,
    /// Time since `base`.
    clock: Cell<Duration>,
    numbers: Cell<u64>,
    tasks: RefCell<HashMap<u64, Rc<Task>>>,
    /// Tasks that could run.
    ready: RefCell<Vec<u64>>,
    events: RefCell<BTreeMap<(Duration, u64), Event>>,
    outside: RefCell<Option<Rc<dyn Outside>>>,
    /// Our open sockets.
    sockets: RefCell<HashMap<RawFd, Weak<End>>>,
    /// Connections that nobody has accepted yet.
    knocking: RefCell<VecDeque<(End, SocketAddr)>>,
    acceptor: RefCell<Option<Waker>>,
    listens: Cell<bool>,
    /// Connections on their way to the task that serves them, by the real descriptor that
    /// stands for each.
    tokens: RefCell<HashMap<RawFd, (End, SocketAddr)>>,
    /// Polls so far.
    steps: Cell<u64>,
    /// All connections that there were.
    links: RefCell<Vec<Weak<Link>>>,
    /// What tasks of ours waited for: after which step, and from where.
    waits: RefCell<Vec<Wait>>,
    /// The task that runs is ours, and it is to be noted what it waits for.
    notes: Cell<bool>,
    runs_ours: Cell<bool>,
    /// The step whose waiting is to be looked at.
    looks_at: Cell<u64>,
    /// Where a task of ours stood at the end of that step.
    seen: RefCell<Vec<Backtrace>>,
}

/// Something that a task waited for.
#[derive(Debug, Clone, Copy)]
pub struct Wait {
    /// The step in which it began.
    pub step: u64,
    /// The same for the same stack, within a process.
    pub stack: u64,
}

/// What befalls all connections of one kind at once, between two steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blow {
    /// Their far ends have sent all they will.
    Finish,
    Reset,
    /// Nothing arrives any more in either direction, until our side closes.
    Silence,
}

impl World {
    pub fn new(seed: u64, setup: Setup) -> Rc<Self> {
        Rc::new(Self {
            random: Random::new(seed),
            setup,
            base: Instant::now(),
            clock: Cell::default(),
            numbers: Cell::new(1),
            tasks: RefCell::default(),
            ready: RefCell::default(),
            events: RefCell::default(),
            outside: RefCell::default(),
            sockets: RefCell::default(),
            knocking: RefCell::default(),
            acceptor: RefCell::default(),
            listens: Cell::new(false),
            tokens: RefCell::default(),
            steps: Cell::new(0),
            links: RefCell::default(),
            waits: RefCell::default(),
            notes: Cell::new(false),
            runs_ours: Cell::new(false),
            looks_at: Cell::new(u64::MAX),
            seen: RefCell::default(),
        })
    }

    /// The world that runs on this thread.
    pub fn current() -> Option<Rc<Self>> {
        CURRENT.with_borrow(Clone::clone)
    }

    /// Time since the world began.
    pub fn clock(&self) -> Duration {
        self.clock.get()
    }

    pub fn now(&self) -> Instant {
        self.base + self.clock.get()
    }

    /// A number that was not there before.
    pub fn number(&self) -> u64 {
        let number = self.numbers.get();
        self.numbers.set(number + 1);
        number
    }

    /// Sockets of our side that are open.
    pub fn sockets_open(&self) -> usize {
        let sockets = self.sockets.borrow();
        sockets
            .values()
            .filter(|end| end.strong_count() > 0)
            .count()
            + self.tokens.borrow().len()
    }

    /// Tasks of our side that have not ended.
    pub fn tasks_open(&self) -> usize {
        let tasks = self.tasks.borrow();
        tasks.values().filter(|task| task.is_ours).count()
    }

    /// How often a task has run.
    pub fn steps(&self) -> u64 {
        self.steps.get()
    }

    /// Notes from now on what tasks of our side wait for.
    pub fn note_waits(&self) {
        self.notes.set(true);
    }

    /// What was noted.
    pub fn waits(&self) -> Vec<Wait> {
        self.waits.take()
    }

    /// Looks at where the task waits that runs in this step.
    pub fn look_at(&self, step: u64) {
        self.looks_at.set(step);
    }

    /// What was seen: a stack for each thing that the task waited for.
    pub fn seen(&self) -> Vec<Backtrace> {
        self.seen.take()
    }

    /// Lets this befall all connections to callers, or to upstreams, now.
    pub fn strike(&self, callers: bool, blow: Blow) {
        let links: Vec<_> = (self.links.borrow().iter())
            .filter_map(Weak::upgrade)
            .filter(|link| matches!(link.far, Far::Caller(_)) == callers)
            .collect();
        for link in links {
            match blow {
                // Whoever has closed already hears no more.
                Blow::Silence => link.is_silent.set(!link.to_us.0.borrow().is_closed),
                Blow::Finish => {
                    let mut pipe = link.to_us.0.borrow_mut();
                    pipe.is_finished = true;
                    let pipe = &mut *pipe;
                    for piece in pipe.under_way.drain(..) {
                        if let Piece::Bytes(bytes) = piece
                            && !pipe.is_closed
                            && !std::mem::take(&mut pipe.is_swallowing)
                        {
                            pipe.arrived.extend_from_slice(&bytes);
                        }
                    }
                    pipe.under_way_bytes = 0;
                    pipe.is_ended = true;
                }
                Blow::Reset => {
                    for pipe in [&link.to_us, &link.to_peer] {
                        let mut pipe = pipe.0.borrow_mut();
                        pipe.under_way.clear();
                        pipe.under_way_bytes = 0;
                        pipe.is_finished = true;
                        pipe.is_reset = true;
                    }
                }
            }
            link.to_us.wake_all();
            link.to_peer.wake_all();
        }
    }

    /// Whether what travels on this connection is held, so that it may not have arrived when it was due.
    pub fn is_silent(&self, number: u64) -> bool {
        let links = self.links.borrow();
        let mut links = links.iter().filter_map(Weak::upgrade);
        links.any(|link| link.number == number && link.is_silent.get())
    }

    fn outside(&self) -> Rc<dyn Outside> {
        let outside = self.outside.borrow();
        Rc::clone(outside.as_ref().expect("a world that runs has an outside"))
    }

    /// Runs `main` to its end, for `limit` of virtual time at most. Tasks that have not ended
    /// by then are dropped.
    ///
    /// # Errors
    /// Why `main` has not ended.
    pub fn run<T>(
        self: &Rc<Self>,
        outside: Rc<dyn Outside>,
        limit: Duration,
        main: impl Future<Output = T>,
    ) -> Result<T, Stuck> {
        *self.outside.borrow_mut() = Some(outside);
        let _entered = Entered::new(self);
        let mut main = std::pin::pin!(main);
        let (handle, waker) = Handle::new(MAIN);
        waker.wake_by_ref();
        loop {
            let Some(id) = self.next_ready() else {
                self.pass_time(limit)?;
                continue;
            };
            self.steps.set(self.steps.get() + 1);
            if id == MAIN {
                handle.queued.store(false, Ordering::Relaxed);
                if let Poll::Ready(value) = main.as_mut().poll(&mut Context::from_waker(&waker)) {
                    return Ok(value);
                }
            } else {
                self.run_task(id);
            }
            if !self.outside().step() {
                return Err(Stuck::Ended);
            }
        }
    }

    fn next_ready(&self) -> Option<u64> {
        let mut ready = self.ready.borrow_mut();
        let chosen = self.random.below(ready.len());
        (!ready.is_empty()).then(|| ready.swap_remove(chosen))
    }

    fn run_task(&self, id: u64) {
        let Some(task) = self.tasks.borrow().get(&id).cloned() else {
            return;
        };
        task.handle.queued.store(false, Ordering::Relaxed);
        let Some(mut body) = task.body.take() else {
            return;
        };
        self.runs_ours.set(task.is_ours);
        let polled = body.as_mut().poll(&mut Context::from_waker(&task.waker));
        self.runs_ours.set(false);
        match polled {
            Poll::Pending => task.body.set(Some(body)),
            Poll::Ready(()) => {
                self.tasks.borrow_mut().remove(&id);
            }
        }
    }

    /// Lets time pass until something happens.
    fn pass_time(&self, limit: Duration) -> Result<(), Stuck> {
        let Some(((due, _), event)) = self.events.borrow_mut().pop_first() else {
            return Err(Stuck::Deadlock);
        };
        if due > limit {
            return Err(Stuck::TimeIsUp);
        }
        self.clock.set(due.max(self.clock.get()));
        match event {
            Event::Wake(waker) => waker.wake(),
            Event::Arrival(link, side) => link.arrive(self, side),
        }
        Ok(())
    }

    /// Starts a task of our side.
    pub fn spawn(&self, body: impl Future<Output = ()> + 'static) {
        self.start(true, body);
    }

    /// Starts a task of the outside.
    pub fn spawn_outside(&self, body: impl Future<Output = ()> + 'static) {
        self.start(false, body);
    }

    fn start(&self, is_ours: bool, body: impl Future<Output = ()> + 'static) {
        let id = self.number();
        let (handle, waker) = Handle::new(id);
        let task = Rc::new(Task {
            is_ours,
            body: Cell::new(Some(Box::pin(body))),
            handle,
            waker: waker.clone(),
        });
        self.tasks.borrow_mut().insert(id, task);
        waker.wake();
    }

    /// How long the next piece travels.
    fn latency(&self) -> Duration {
        let most = self.setup.latency_max.as_micros() as usize;
        Duration::from_micros(self.random.within(0..=most) as u64)
    }

    /// A connection to us: its other end. `None`: nobody listens any more.
    pub fn call(self: &Rc<Self>, client: SocketAddr) -> Option<End> {
        if !self.listens.get() {
            return None;
        }
        let (ours, theirs) = self.link(Far::Caller(client));
        self.knocking.borrow_mut().push_back((ours, client));
        if let Some(acceptor) = self.acceptor.take() {
            acceptor.wake();
        }
        Some(theirs)
    }

    fn link(self: &Rc<Self>, far: Far) -> (End, End) {
        let to_peer = match far {
            Far::Caller(_) => self.setup.window_down,
            Far::Upstream(_) => self.setup.window,
        };
        let link = Rc::new(Link {
            number: self.number(),
            far,
            to_us: Pipe::new(self.setup.window),
            to_peer: Pipe::new(to_peer),
            is_silent: Cell::new(false),
            held: RefCell::default(),
        });
        self.links.borrow_mut().push(Rc::downgrade(&link));
        let end = |side| End {
            world: Rc::clone(self),
            link: Rc::clone(&link),
            side,
            fd: FIRST_FD + link.number as RawFd,
            resets: Cell::new(false),
        };
        (end(Side::Us), end(Side::Peer))
    }

    /// Takes a socket of our side into use.
    fn open(&self, end: End) -> (Rc<End>, RawFd) {
        let fd = end.fd;
        let end = Rc::new(end);
        let mut sockets = self.sockets.borrow_mut();
        sockets.retain(|_, end| end.strong_count() > 0);
        sockets.insert(fd, Rc::downgrade(&end));
        (end, fd)
    }

    fn socket(&self, fd: RawFd) -> Option<Rc<End>> {
        self.sockets.borrow().get(&fd)?.upgrade()
    }

    pub(super) async fn connect(
        self: &Rc<Self>,
        address: SocketAddr,
    ) -> io::Result<(Rc<End>, RawFd)> {
        let reception = self.outside().reception(address);
        sleep(self.latency()).await;
        match reception {
            Reception::Refuse => return Err(io::Error::from_raw_os_error(libc::ECONNREFUSED)),
            Reception::Silence => {
                poll_fn(|_| {
                    waits();
                    Poll::<()>::Pending
                })
                .await;
            }
            Reception::Accept => {}
        }
        let (ours, theirs) = self.link(Far::Upstream(address));
        let opened = self.open(ours);
        self.outside().connected(address, theirs);
        Ok(opened)
    }

    /// The connection that a real descriptor stands for.
    pub(super) fn adopt(&self, token: &OwnedFd) -> io::Result<(Rc<End>, RawFd)> {
        let (end, _) = (self.tokens.borrow_mut())
            .remove(&token.as_raw_fd())
            .ok_or(io::ErrorKind::NotConnected)?;
        Ok(self.open(end))
    }

    pub(super) fn peer_address(&self, token: RawFd) -> io::Result<SocketAddr> {
        let tokens = self.tokens.borrow();
        let (_, client) = tokens.get(&token).ok_or(io::ErrorKind::NotConnected)?;
        Ok(*client)
    }

    pub(super) fn cut(&self, fd: RawFd, receiving_only: bool) {
        if let Some(end) = self.socket(fd) {
            end.inbound().shut();
            if !receiving_only {
                end.finish();
                end.outbound().wake_all();
            }
        }
    }

    pub(super) fn abort(&self, fd: RawFd) {
        if let Some(end) = self.socket(fd) {
            end.resets.set(true);
            end.outbound().0.borrow_mut().is_finished = true;
            end.inbound().shut();
            end.outbound().wake_all();
        }
    }

    pub(super) fn finish_sending(&self, fd: RawFd) {
        if let Some(end) = self.socket(fd) {
            end.finish();
        }
    }

    pub(super) fn reset_on_close(&self, fd: RawFd) {
        if let Some(end) = self.socket(fd) {
            end.resets.set(true);
        }
    }

    pub(super) fn peek(&self, fd: RawFd) -> super::Peeked {
        let Some(end) = self.socket(fd) else {
            return super::Peeked::Closed;
        };
        let pipe = end.inbound().0.borrow();
        if !pipe.arrived.is_empty() {
            super::Peeked::Bytes
        } else if pipe.is_over() {
            super::Peeked::Closed
        } else {
            super::Peeked::Quiet
        }
    }

    pub(super) fn is_hung_up(&self, fd: RawFd) -> bool {
        (self.socket(fd)).is_none_or(|end| end.inbound().0.borrow().is_over())
    }

    pub(super) fn recv_now(&self, fd: RawFd, buffer: &mut Vec<u8>) -> bool {
        let received = self.socket(fd).map(|end| end.try_recv(buffer));
        matches!(received, Some(Ok(1..)))
    }

    /// The beat of this core's heart: late at times, as a busy machine's is.
    pub(super) async fn beat(&self) {
        let late = match self.random.below(16) {
            0 => 400,
            _ => self.random.below(20),
        };
        sleep(crate::tick::PERIOD + Duration::from_millis(late as u64)).await;
    }
}

/// Makes a world the current one for as long as it runs.
struct Entered<'a>(&'a World);

impl<'a> Entered<'a> {
    fn new(world: &'a Rc<World>) -> Self {
        CURRENT.with_borrow_mut(|current| {
            assert!(current.is_none(), "a world runs on this thread already");
            *current = Some(Rc::clone(world));
        });
        Self(world)
    }
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        loop {
            let tasks: Vec<_> = self.0.tasks.take().into_values().collect();
            if tasks.is_empty() {
                break;
            }
            for task in tasks {
                drop(task.body.take());
            }
        }
        drop(self.0.knocking.take());
        drop(self.0.tokens.take());
        drop(self.0.events.take());
        self.0.ready.borrow_mut().clear();
        self.0.outside.take();
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
        if !self.queued.swap(true, Ordering::Relaxed) {
            CURRENT.with_borrow(|current| {
                if let Some(world) = current {
                    world.ready.borrow_mut().push(self.id);
                }
            });
        }
    }
}

/// Waits. Dropped, it leaves nothing behind.
pub async fn sleep(duration: Duration) {
    let world = World::current().expect("only inside a world");
    let mut timer = Timer {
        due: world.clock.get().saturating_add(duration),
        number: world.number(),
        world,
    };
    poll_fn(|context| timer.poll(context)).await;
}

struct Timer {
    world: Rc<World>,
    due: Duration,
    number: u64,
}

impl Timer {
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<()> {
        if self.due <= self.world.clock.get() {
            return Poll::Ready(());
        }
        waits();
        let wake = Event::Wake(context.waker().clone());
        (self.world.events.borrow_mut()).insert((self.due, self.number), wake);
        Poll::Pending
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        let taken = (self.world.events.borrow_mut()).remove(&(self.due, self.number));
        drop(taken);
    }
}

/// A task is about to wait, here.
pub fn waits() {
    let Some(world) = World::current().filter(|world| world.runs_ours.get()) else {
        return;
    };
    let step = world.steps.get();
    if world.notes.get() {
        let stack = stack();
        world.waits.borrow_mut().push(Wait { step, stack });
    }
    if step == world.looks_at.get() {
        world.seen.borrow_mut().push(Backtrace::force_capture());
    }
}

/// The stack's addresses, in one number: a hundred times cheaper than their names.
fn stack() -> u64 {
    let mut frames = [std::ptr::null_mut(); 64];
    // SAFETY: at most as many addresses are written as there is room for.
    let count = unsafe { libc::backtrace(frames.as_mut_ptr(), frames.len() as libc::c_int) };
    let count = usize::try_from(count).unwrap_or(0);
    (frames[..count].iter()).fold(0xcbf2_9ce4_8422_2325, |hash: u64, frame| {
        (hash ^ frame.addr() as u64).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

/// Lets others run first, if the dice say so.
pub async fn yield_now() {
    let mut yielded = false;
    poll_fn(|context| {
        if std::mem::replace(&mut yielded, true) {
            return Poll::Ready(());
        }
        waits();
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// Who is at the far end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Far {
    Caller(SocketAddr),
    Upstream(SocketAddr),
}

/// Which end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Us,
    Peer,
}

/// A connection.
pub struct Link {
    /// No two connections of a world have the same.
    pub number: u64,
    pub far: Far,
    to_us: Pipe,
    to_peer: Pipe,
    /// What arrives is held, until our side closes.
    is_silent: Cell<bool>,
    held: RefCell<Vec<Side>>,
}

/// One direction of a connection.
struct Pipe(RefCell<PipeState>);

struct PipeState {
    under_way: VecDeque<Piece>,
    under_way_bytes: usize,
    /// When the last piece arrives: none overtakes another.
    last_due: Duration,
    arrived: Vec<u8>,
    window: usize,
    /// The sender sends no more.
    is_finished: bool,
    /// The sender's end has arrived.
    is_ended: bool,
    /// A reset has arrived.
    is_reset: bool,
    /// The receiver wants no more.
    is_shut: bool,
    /// The receiver's socket is closed.
    is_closed: bool,
    /// A lent buffer that nobody holds any more takes the next bytes.
    is_swallowing: bool,
    /// Bytes that have travelled alone.
    single_bytes: usize,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

enum Piece {
    Bytes(Vec<u8>),
    Finish,
    Reset,
}

impl PipeState {
    fn is_over(&self) -> bool {
        self.is_ended || self.is_reset || self.is_shut
    }

    fn is_readable(&self) -> bool {
        !self.arrived.is_empty() || self.is_over()
    }

    fn room(&self) -> usize {
        self.window
            .saturating_sub(self.arrived.len() + self.under_way_bytes)
    }
}

impl Pipe {
    fn new(window: usize) -> Self {
        Self(RefCell::new(PipeState {
            under_way: VecDeque::new(),
            under_way_bytes: 0,
            last_due: Duration::ZERO,
            arrived: Vec::new(),
            window,
            is_finished: false,
            is_ended: false,
            is_reset: false,
            is_shut: false,
            is_closed: false,
            is_swallowing: false,
            single_bytes: 0,
            reader: None,
            writer: None,
        }))
    }

    fn wake_all(&self) {
        let (reader, writer) = {
            let mut pipe = self.0.borrow_mut();
            (pipe.reader.take(), pipe.writer.take())
        };
        for waker in [reader, writer].into_iter().flatten() {
            waker.wake();
        }
    }

    fn shut(&self) {
        self.0.borrow_mut().is_shut = true;
        self.wake_all();
    }
}

impl Link {
    fn towards(&self, side: Side) -> &Pipe {
        match side {
            Side::Us => &self.to_us,
            Side::Peer => &self.to_peer,
        }
    }

    /// Sends a piece on its way.
    fn post(self: &Rc<Self>, world: &World, side: Side, piece: Piece) {
        let mut pipe = self.towards(side).0.borrow_mut();
        if let Piece::Bytes(bytes) = &piece {
            pipe.under_way_bytes += bytes.len();
        }
        pipe.last_due = pipe.last_due.max(world.clock.get() + world.latency());
        pipe.under_way.push_back(piece);
        let event = Event::Arrival(Rc::clone(self), side);
        (world.events.borrow_mut()).insert((pipe.last_due, world.number()), event);
    }

    fn arrive(self: &Rc<Self>, world: &World, side: Side) {
        if self.is_silent.get() {
            return self.held.borrow_mut().push(side);
        }
        let mut refused = false;
        {
            let mut pipe = self.towards(side).0.borrow_mut();
            match pipe.under_way.pop_front() {
                Some(Piece::Bytes(bytes)) => {
                    pipe.under_way_bytes -= bytes.len();
                    if pipe.is_closed {
                        refused = true;
                    } else if pipe.is_swallowing {
                        pipe.is_swallowing = false;
                    } else {
                        pipe.arrived.extend_from_slice(&bytes);
                    }
                }
                Some(Piece::Finish) => pipe.is_ended = true,
                Some(Piece::Reset) => pipe.is_reset = true,
                // Lost with a reset.
                None => {}
            }
        }
        self.towards(side).wake_all();
        let back = match side {
            Side::Us => Side::Peer,
            Side::Peer => Side::Us,
        };
        if refused {
            self.post(world, back, Piece::Reset);
        }
        // A reset ends both directions: whoever sends meets it as well.
        self.towards(back).wake_all();
    }
}

/// One end of a connection. Dropped, it is closed.
pub struct End {
    world: Rc<World>,
    pub link: Rc<Link>,
    side: Side,
    fd: RawFd,
    /// Closing it is a reset.
    resets: Cell<bool>,
}

impl End {
    fn inbound(&self) -> &Pipe {
        self.link.towards(self.side)
    }

    fn far_side(&self) -> Side {
        match self.side {
            Side::Us => Side::Peer,
            Side::Peer => Side::Us,
        }
    }

    fn outbound(&self) -> &Pipe {
        self.link.towards(self.far_side())
    }

    /// What can be received now, behind what `buffer` holds.
    fn try_recv(&self, buffer: &mut Vec<u8>) -> io::Result<usize> {
        let taken = {
            let mut pipe = self.inbound().0.borrow_mut();
            let most = (buffer.capacity() - buffer.len()).min(pipe.arrived.len());
            if most == 0 {
                return if pipe.is_reset {
                    Err(io::Error::from_raw_os_error(libc::ECONNRESET))
                } else if pipe.is_over() {
                    Ok(0)
                } else {
                    Err(io::ErrorKind::WouldBlock.into())
                };
            }
            let taken = self.grant(most);
            buffer.extend_from_slice(&pipe.arrived[..taken]);
            pipe.arrived.drain(..taken);
            taken
        };
        self.inbound().wake_all();
        Ok(taken)
    }

    /// How much of what could be moved is.
    fn grant(&self, most: usize) -> usize {
        let random = &self.world.random;
        match random.below(8) {
            _ if !self.world.setup.is_stingy => most,
            0 => random.within(1..=most),
            1..=4 => random.within(most.div_ceil(3)..=most),
            _ => most,
        }
    }

    /// What can be sent now of `bytes`.
    fn try_send(&self, bytes: &[u8]) -> io::Result<usize> {
        if self.inbound().0.borrow().is_reset {
            return Err(io::Error::from_raw_os_error(libc::ECONNRESET));
        }
        let room = {
            let pipe = self.outbound().0.borrow();
            if pipe.is_finished {
                return Err(io::Error::from_raw_os_error(libc::EPIPE));
            }
            pipe.room().min(bytes.len())
        };
        if room == 0 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let bytes = &bytes[..self.grant(room)];
        self.post(bytes);
        Ok(bytes.len())
    }

    /// Cuts a message and sends it on its way.
    fn post(&self, bytes: &[u8]) {
        if self.side == Side::Us {
            self.world.outside().written(&self.link, bytes);
        }
        let mut rest = bytes;
        while !rest.is_empty() {
            let mut pipe = self.outbound().0.borrow_mut();
            let cut = self.world.setup.cut;
            let length = match cut {
                Cut::Everywhere if pipe.single_bytes < SINGLE_BYTES => {
                    pipe.single_bytes += 1;
                    1
                }
                Cut::Somewhere | Cut::Everywhere if !self.world.random.one_in(3) => {
                    self.world.random.within(1..=rest.len())
                }
                _ => rest.len(),
            };
            drop(pipe);
            let (piece, behind) = rest.split_at(length);
            rest = behind;
            let piece = Piece::Bytes(piece.to_vec());
            self.link.post(&self.world, self.far_side(), piece);
        }
    }

    /// Sends the end.
    pub fn finish(&self) {
        if !std::mem::replace(&mut self.outbound().0.borrow_mut().is_finished, true) {
            self.link.post(&self.world, self.far_side(), Piece::Finish);
        }
    }

    /// Whether closing it will be a reset.
    pub fn reset_on_close(&self) {
        self.resets.set(true);
    }

    fn poll_readable(&self, context: &mut Context<'_>) -> Poll<()> {
        let mut pipe = self.inbound().0.borrow_mut();
        if pipe.is_readable() {
            return Poll::Ready(());
        }
        waits();
        pipe.reader = Some(context.waker().clone());
        Poll::Pending
    }

    /// Waits until something can be received, or the end is there.
    pub async fn readable(&self) {
        poll_fn(|context| self.poll_readable(context)).await;
    }

    /// Waits until a send finds room, or fails.
    async fn writable(&self) {
        poll_fn(|context| {
            let is_over = self.inbound().0.borrow().is_reset;
            let mut pipe = self.outbound().0.borrow_mut();
            // As Linux has it: not for every few bytes that become free.
            if is_over || pipe.is_finished || pipe.room() * 3 >= pipe.window {
                return Poll::Ready(());
            }
            waits();
            pipe.writer = Some(context.waker().clone());
            Poll::Pending
        })
        .await;
    }

    /// As [`super::Receiver::recv`].
    pub(super) async fn recv(
        &self,
        mut buffer: Vec<u8>,
        stopper: &Stopper,
    ) -> (io::Result<usize>, Vec<u8>) {
        if !self.lends() {
            let received = self.try_recv(&mut buffer);
            return (received, buffer);
        }
        let mut lent = LentReceive {
            end: self,
            stopper,
            room: buffer.capacity() - buffer.len(),
            is_under_way: true,
        };
        stopper.is_asked.set(false);
        let received = poll_fn(|context| {
            if stopper.is_asked.replace(false) {
                if self.world.setup.loses_at_stop {
                    self.inbound().0.borrow_mut().is_swallowing = true;
                }
                return Poll::Ready(Err(io::Error::from_raw_os_error(libc::ECANCELED)));
            }
            *stopper.waiting.borrow_mut() = Some(context.waker().clone());
            self.poll_readable(context)
                .map(|()| self.try_recv(&mut buffer))
        })
        .await;
        lent.is_under_way = false;
        drop(lent);
        (received, buffer)
    }

    pub(super) fn lends(&self) -> bool {
        self.world.setup.lends
    }

    /// As [`super::Sender::send`].
    pub async fn send(&self, buffer: Vec<u8>) -> (io::Result<()>, usize, Vec<u8>) {
        let mut done = 0;
        while done < buffer.len() {
            match self.try_send(&buffer[done..]) {
                Ok(sent) => done += sent,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.writable().await,
                Err(error) => return (Err(error), done, buffer),
            }
        }
        (Ok(()), done, buffer)
    }

    /// The next bytes; empty at the end.
    ///
    /// # Errors
    /// The connection was reset.
    pub async fn receive(&self) -> io::Result<Vec<u8>> {
        self.readable().await;
        let mut buffer = Vec::with_capacity(16 * 1024);
        self.try_recv(&mut buffer)?;
        Ok(buffer)
    }

    /// When all that was sent so far has arrived.
    pub fn arrives_by(&self) -> Duration {
        self.outbound().0.borrow().last_due
    }
}

impl Drop for End {
    fn drop(&mut self) {
        let is_unread = {
            let mut pipe = self.inbound().0.borrow_mut();
            pipe.is_closed = true;
            !pipe.arrived.is_empty()
        };
        if self.resets.get() || is_unread {
            if self.resets.get() {
                // What has not arrived yet may be lost with the connection.
                let mut pipe = self.outbound().0.borrow_mut();
                let kept = self.world.random.within(0..=pipe.under_way.len());
                pipe.under_way.truncate(kept);
            }
            self.outbound().0.borrow_mut().is_finished = true;
            self.link.post(&self.world, self.far_side(), Piece::Reset);
        } else {
            self.finish();
        }
        if self.side == Side::Us && self.link.is_silent.replace(false) {
            for side in self.link.held.take() {
                let event = Event::Arrival(Rc::clone(&self.link), side);
                let now = self.world.clock.get();
                (self.world.events.borrow_mut()).insert((now, self.world.number()), event);
            }
        }
    }
}

/// A receive that has lent its buffer to the kernel. Dropped before it ended, it takes along what
/// it would have received.
struct LentReceive<'a> {
    end: &'a End,
    stopper: &'a Stopper,
    room: usize,
    is_under_way: bool,
}

impl Drop for LentReceive<'_> {
    fn drop(&mut self) {
        self.stopper.waiting.take();
        if self.is_under_way {
            let mut pipe = self.end.inbound().0.borrow_mut();
            let lost = self.room.min(pipe.arrived.len());
            pipe.arrived.drain(..lost);
            pipe.is_swallowing = lost == 0;
        }
    }
}

/// What [`super::Stop`] stops here.
#[derive(Default)]
pub struct Stopper {
    waiting: RefCell<Option<Waker>>,
    is_asked: Cell<bool>,
}

impl Stopper {
    pub(super) fn stop(&self) {
        if let Some(waiting) = self.waiting.take() {
            self.is_asked.set(true);
            waiting.wake();
        }
    }
}

/// The place where callers knock.
pub struct Door(Rc<World>);

impl Door {
    pub(super) fn open(world: Rc<World>) -> Self {
        world.listens.set(true);
        Self(world)
    }

    pub(super) async fn accept(&self, stopper: &Stopper) -> io::Result<OwnedFd> {
        poll_fn(|context| {
            if stopper.is_asked.replace(false) {
                return Poll::Ready(Err(io::Error::from_raw_os_error(libc::ECANCELED)));
            }
            if let Some(accepted) = self.accept_now() {
                return Poll::Ready(accepted);
            }
            *stopper.waiting.borrow_mut() = Some(context.waker().clone());
            *self.0.acceptor.borrow_mut() = Some(context.waker().clone());
            Poll::Pending
        })
        .await
    }

    /// A connection that waits already. A real descriptor stands for it on its way to the task
    /// that serves it, as the product's type for one wants.
    pub(super) fn accept_now(&self) -> Option<io::Result<OwnedFd>> {
        let (end, client) = self.0.knocking.borrow_mut().pop_front()?;
        Some(token().inspect(|token| {
            (self.0.tokens.borrow_mut()).insert(token.as_raw_fd(), (end, client));
        }))
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        self.0.listens.set(false);
        for (end, _) in self.0.knocking.take() {
            end.reset_on_close();
        }
    }
}

fn token() -> io::Result<OwnedFd> {
    std::fs::File::open("/dev/null").map(OwnedFd::from)
}
