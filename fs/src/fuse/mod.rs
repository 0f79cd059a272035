//! The FUSE front-end: decodes the kernel's requests, and encodes the answers of a view or the control
//! directory.
//!
//! fuser's types stay inside this module. It decides only where a request goes: to the live view, to a
//! snapshot's view, to the control directory or to a placeholder, which no view has.
//!
//! A request arrives in `filesystem`, goes through `requests` (or `names`, `listing`, `locks`, `seek`,
//! `xattr`, `passthrough`), which finds the view through `nodes`, and is answered through `reply`; `idmap`
//! and `privileges` translate ids and modes on the way. Work that may take long goes to `workers`. `notify`,
//! `pages` and `watchers` send what the kernel did not ask for.

mod filesystem;
mod idmap;
mod invalidator;
mod link;
mod links;
mod listing;
mod locks;
mod names;
mod nodes;
mod notify;
mod options;
mod outdated;
mod pages;
mod passthrough;
mod placeholders;
mod points;
mod privileges;
mod reply;
mod requests;
mod rewrites;
mod seek;
mod watchers;
mod workers;
mod xattr;

use std::io;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize};
use std::time::Duration;

use fuser::{Errno, Generation, INodeNo, InitFlags, KernelConfig, ReplyEntry, Request};
use karapace_store::fail;
use karapace_store::id::ObjectId;
use karapace_store::inode::{Ino, ROOT_INO};
use karapace_store::tree::Trees;

pub(crate) use self::idmap::IdMap;
pub use self::invalidator::Invalidator;
use self::link::Lifetime;
pub(crate) use self::link::Link;
pub(crate) use self::links::Links;
use self::nodes::{CONTROL, LIVE, PLACEHOLDER, Views, split};
pub(crate) use self::notify::Kernel;
pub use self::options::{CtlDir, Flag, MountOptions, SubIds};
use self::passthrough::Passthrough;
pub use self::points::MountPoints;
use self::reply::{FOREVER, NEVER, absent, file_attr};
pub use self::watchers::Watchers;
use self::workers::Workers;
use crate::attr::{Attr, Caller};
use crate::control::{ControlDir, DIR_NAME, Found};
use crate::error::{Error, Result};
use crate::view::{Ahead, View};

/// Largest write request in bytes: the kernel's own limit since 4.20.
const MAX_WRITE: u32 = 1 << 20;

/// Stacking depth allowed with passthrough: this file system on the one that holds the objects.
const PASSTHROUGH_DEPTH: u32 = 1;

/// Number of threads for fsync.
const SYNC_THREADS: usize = 2;

/// Number of threads that wait for the kernel to write back pages over holes.
const SEEK_THREADS: usize = 2;

/// Number of read-ahead threads, and the most parts queued for them.
const AHEAD_THREADS: usize = 2;
const AHEAD_PARTS: usize = 16;

/// Node ids are never reused while the kernel knows them, so one generation is enough.
const GENERATION: Generation = Generation(0);

/// What one mount serves, and how.
pub(crate) struct Service {
    /// The live view.
    pub live: Arc<View>,
    /// Opens the views of snapshots.
    pub trees: Arc<Trees>,
    /// The control directory; `None` if disabled.
    pub control: Option<Arc<ControlDir>>,
    /// The options in effect ([`MountOptions::in_effect`]).
    pub options: MountOptions,
    /// Translates between the tree's ids and those of the mount.
    pub ids: IdMap,
    /// All connections of the live view, and this one.
    pub links: Arc<Links>,
    pub link: Arc<Link>,
    /// The process that makes calls on behalf of watchers.
    pub watchers: Watchers,
    /// The processes that make mount points.
    pub mount_points: MountPoints,
}

/// fuser's file system: a handle to the state that requests share.
pub(crate) struct Server(Arc<Shared>);

struct Shared {
    views: Views,
    trees: Arc<Trees>,
    control: Option<Arc<ControlDir>>,
    options: MountOptions,
    ids: IdMap,
    passthrough: Option<Passthrough>,
    links: Arc<Links>,
    link: Arc<Link>,
    watchers: Watchers,
    /// The next handle of an open file, if they are distinguished.
    handles: AtomicU64,
    mount_points: MountPoints,
    /// Request threads that are waiting for other threads to answer the kernel's requests.
    waiting: AtomicUsize,
    workers: Workers,
    seekers: Workers,
    ahead: Workers,
}

/// Where a node lives.
enum Node {
    View {
        index: u16,
        view: Arc<View>,
        ino: Ino,
    },
    Control(Ino),
    /// A mount point that no view has.
    Placeholder(Ino),
}

impl Server {
    /// Creates a server for `service`.
    ///
    /// # Errors
    /// If its threads cannot be started.
    pub fn new(service: Service) -> io::Result<Server> {
        Ok(Server(Arc::new(Shared {
            views: Views::new(service.live),
            trees: service.trees,
            control: service.control,
            passthrough: service.options.passthrough.then(Passthrough::default),
            options: service.options,
            ids: service.ids,
            links: service.links,
            link: service.link,
            watchers: service.watchers,
            handles: AtomicU64::new(0),
            mount_points: service.mount_points,
            waiting: AtomicUsize::new(0),
            workers: Workers::new("sync", SYNC_THREADS)?,
            seekers: Workers::new("seek", SEEK_THREADS)?,
            ahead: Workers::new("ahead", AHEAD_THREADS)?,
        })))
    }
}

/// Runs the work of one request. A panic fails the request, not the mount.
fn guard<T>(request: &'static str, work: impl FnOnce() -> Result<T>) -> std::result::Result<T, Errno> {
    let error = match catch_unwind(AssertUnwindSafe(work)) {
        Ok(Ok(value)) => return Ok(value),
        Ok(Err(error)) => error,
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
            tracing::error!(request, panic = text, "a request panicked and was answered with EIO");
            return Err(Errno::EIO);
        }
    };
    // Damage found in a file has been logged already, once per object.
    let is_told = matches!(&error, Error::Damaged(damage) if damage.path.is_some());
    if !is_told
        && matches!(
            error,
            Error::Damaged(_) | Error::Corrupt(_) | Error::Store(_) | Error::Host { .. } | Error::Io(_)
        )
    {
        tracing::error!(request, %error, "a request failed");
    }
    let errno = error.errno();
    if tracing::enabled!(tracing::Level::TRACE) {
        tracing::Span::current().record("errno", errno);
    }
    Err(Errno::from_i32(errno))
}

impl Shared {
    fn node(&self, node: INodeNo) -> std::result::Result<Node, Errno> {
        let (index, ino) = split(node.0);
        if index == CONTROL {
            return Ok(Node::Control(ino));
        }
        if index == PLACEHOLDER {
            return self.link.placeholders.attr(ino).map(|_| Node::Placeholder(ino));
        }
        let view = self.views.get(index).map_err(|e| Errno::from_i32(e.errno()))?;
        Ok(Node::View { index, view, ino })
    }

    /// The view that holds a node.
    ///
    /// # Errors
    /// `EPERM` for a node of the control directory, `EROFS` for a placeholder.
    fn view(&self, node: INodeNo) -> std::result::Result<(u16, Arc<View>, Ino), Errno> {
        match self.node(node)? {
            Node::View { index, view, ino } => Ok((index, view, ino)),
            Node::Control(_) => Err(Errno::EPERM),
            Node::Placeholder(_) => Err(Errno::EROFS),
        }
    }

    fn control(&self) -> std::result::Result<&ControlDir, Errno> {
        self.control.as_deref().ok_or(Errno::ESTALE)
    }

    /// The control directory, if the caller may use it.
    fn control_for(&self, req: &Request) -> std::result::Result<&ControlDir, Errno> {
        let control = self.control()?;
        if control.admits(req.uid(), req.pid()) { Ok(control) } else { Err(Errno::EACCES) }
    }

    /// Whether the name is reserved for the control directory, even if that is disabled.
    fn is_reserved(&self, parent: INodeNo, name: &[u8]) -> bool {
        split(parent.0) == (LIVE, ROOT_INO) && name == DIR_NAME
    }

    /// Whether the kernel checks permissions and ACLs. Otherwise the mount's user acts as root.
    fn kernel_permissions(&self) -> bool {
        self.options.allow_other
    }

    fn caller(&self, req: &Request, umask: u32) -> Caller {
        Caller { uid: self.ids.stored_uid(req.uid()), gid: self.ids.stored_gid(req.gid()), umask }
    }

    /// Negotiates capabilities with the kernel.
    ///
    /// # Errors
    /// `EOPNOTSUPP` if id-mapped mounts are requested and the kernel does not support them for FUSE. Other
    /// missing capabilities only reduce performance.
    fn configure(&self, config: &mut KernelConfig) -> io::Result<()> {
        let mut wanted = InitFlags::FUSE_ASYNC_READ
            | InitFlags::FUSE_BIG_WRITES
            | InitFlags::FUSE_MAX_PAGES
            | InitFlags::FUSE_DO_READDIRPLUS
            | InitFlags::FUSE_PARALLEL_DIROPS
            | InitFlags::FUSE_CACHE_SYMLINKS
            | InitFlags::FUSE_HANDLE_KILLPRIV_V2
            | InitFlags::FUSE_DONT_MASK
            | InitFlags::FUSE_HAS_EXPIRE_ONLY;
        wanted |= match self.shares_locks() {
            true => InitFlags::FUSE_POSIX_LOCKS | InitFlags::FUSE_FLOCK_LOCKS,
            false => InitFlags::FUSE_NO_OPEN_SUPPORT,
        };
        wanted |= match self.options.shares {
            true => InitFlags::FUSE_AUTO_INVAL_DATA,
            false => InitFlags::FUSE_NO_OPENDIR_SUPPORT,
        };
        if self.kernel_permissions() {
            // This flag makes the kernel check permissions, so not on a mount whose user acts as root.
            wanted |= InitFlags::FUSE_POSIX_ACL;
        }
        if self.passthrough.is_some() {
            wanted |= InitFlags::FUSE_PASSTHROUGH;
            if let Err(most) = config.set_max_stack_depth(PASSTHROUGH_DEPTH) {
                tracing::warn!(most, "the kernel does not support passthrough of objects");
            }
        }
        if self.options.idmap && config.add_capabilities(InitFlags::FUSE_ALLOW_IDMAP).is_err() {
            return Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP));
        }
        for flag in wanted.iter() {
            if let Err(missing) = config.add_capabilities(flag) {
                tracing::warn!(?missing, "the kernel lacks a FUSE capability");
            }
        }
        if let Err(nearest) = config.set_max_write(MAX_WRITE) {
            tracing::warn!(nearest, "the size of write requests is limited");
        }
        Ok(())
    }

    /// Prefetches what `find` returns, unless the prefetch queue is full. Call it after replying to the
    /// request.
    fn read_ahead(&self, find: impl FnOnce() -> Option<Ahead>) {
        // No request waits for this. Errors are reported when the data is requested.
        let found = guard("read ahead", || Ok(find()));
        for part in found.ok().flatten().into_iter().flat_map(Ahead::parts) {
            let read = move || {
                let _logged: std::result::Result<(), Errno> = guard("read ahead", || {
                    part.read();
                    Ok(())
                });
            };
            if !self.ahead.offer(AHEAD_PARTS, read) {
                return;
            }
        }
    }

    /// How long the kernel may keep an answer about a view. Ask before the view is: what was read before this
    /// connection began to cache may have changed since.
    fn lifetime(&self, index: u16) -> Lifetime<'_> {
        if index == LIVE { self.link.lifetime() } else { Lifetime::forever() }
    }

    /// Runs an operation on a view that takes a reference, and counts it for this kernel.
    fn counted(&self, index: u16, operation: impl FnOnce() -> Result<Attr>) -> Result<Attr> {
        if index != LIVE {
            return operation();
        }
        let _counting = self.link.counting();
        operation().inspect(|attr| self.link.count(attr.ino))
    }

    /// Replies with the entry `name` of the directory `parent` in a view, whose reference is counted.
    fn entry(
        self: &Arc<Self>,
        reply: ReplyEntry,
        lifetime: &Lifetime<'_>,
        (index, parent, name): (u16, Ino, &[u8]),
        result: std::result::Result<Attr, Errno>,
    ) {
        match result {
            Ok(attr) => {
                if index == LIVE {
                    self.note_name(lifetime, parent, name, Some(&attr));
                }
                let shown = file_attr(&attr, index, Some(&self.ids));
                let time = self.attr_time(lifetime, shown.ino);
                if fail::planted("late-entries") {
                    std::thread::sleep(Duration::from_millis(300));
                }
                reply.entry_with_ttls(&time, &lifetime.time, &shown, GENERATION);
            }
            Err(errno) => reply.error(errno),
        }
    }

    /// How long the kernel may keep a node's attributes, of those that it may keep so long at all.
    fn attr_time(&self, lifetime: &Lifetime<'_>, node: INodeNo) -> Duration {
        match split(node.0) {
            (LIVE, ino) => self.link.outdated.time(ino, lifetime.time),
            _ => lifetime.time,
        }
    }

    /// Replies that the directory `parent` of a view has no entry `name`, which the kernel may keep.
    fn no_entry(
        self: &Arc<Self>,
        reply: ReplyEntry,
        lifetime: &Lifetime<'_>,
        (index, parent, name): (u16, Ino, &[u8]),
    ) {
        if lifetime.time == NEVER {
            return reply.error(Errno::ENOENT);
        }
        if index == LIVE {
            self.note_name(lifetime, parent, name, None);
        }
        reply.entry(&lifetime.time, &absent(), GENERATION);
    }

    /// Remembers a name of the live view that the kernel may keep. See [`Link::note_name`].
    fn note_name(self: &Arc<Self>, lifetime: &Lifetime<'_>, parent: Ino, name: &[u8], found: Option<&Attr>) {
        if lifetime.time == NEVER {
            return;
        }
        self.link.note_given();
        if self.link.note_name(parent, name, found) {
            let link = self.link.clone();
            self.workers.run(move || link.expire_names());
        }
    }

    /// Runs a change of a view that writes no data.
    fn change<T>(
        &self,
        operation: &'static str,
        (index, view): (u16, &View),
        work: impl FnOnce() -> Result<T>,
    ) -> std::result::Result<T, Errno> {
        self.change_data(operation, (index, view), None, || Ok((work()?, 0..0)))
    }

    /// Runs a change of a view. `data` and `work`: see [`Links::change`].
    fn change_data<T>(
        &self,
        operation: &'static str,
        (index, view): (u16, &View),
        data: Option<(Ino, Range<u64>)>,
        work: impl FnOnce() -> Result<(T, Range<u64>)>,
    ) -> std::result::Result<T, Errno> {
        if index != LIVE {
            return guard(operation, work).map(|(result, _)| result);
        }
        self.links.change(view, &self.link, data, || guard(operation, work))
    }

    fn keep_snapshots(&self, roots: &[ObjectId]) -> Result<()> {
        let Some(control) = &self.control else { return Ok(()) };
        self.links.keep_snapshots(&self.link, roots, &|all| control.keep_snapshots(all))
    }

    /// Replies with the result of a look-up in the control directory. The kernel must not cache the name.
    fn control_entry(&self, reply: ReplyEntry, found: std::result::Result<Found, Errno>) {
        let entry = found.and_then(|found| match found {
            Found::Node(attr) => Ok((NEVER, file_attr(&attr, CONTROL, None))),
            Found::Snapshot { name, root } => guard("open snapshot", || {
                let open = |root| View::snapshot(&self.trees, root);
                let keep = |roots: &[ObjectId]| self.keep_snapshots(roots);
                let (index, view) = self.views.snapshot(&name, root, &keep, &open)?;
                match view.getattr(ROOT_INO) {
                    Ok(attr) => Ok((FOREVER, file_attr(&attr, index, Some(&self.ids)))),
                    Err(error) => {
                        self.views.forget(index, ROOT_INO, 1);
                        Err(error)
                    }
                }
            }),
        });
        match entry {
            Ok((attr_ttl, attr)) => reply.entry_with_ttls(&attr_ttl, &NEVER, &attr, GENERATION),
            Err(errno) => reply.error(errno),
        }
    }
}
