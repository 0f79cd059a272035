@item
def pipes_sockets_devices():
    os.mkfifo('p'); pid = os.fork()
    if pid == 0: os.write(os.open('p', os.O_WRONLY), b'through'); os._exit(0)
    show(open('p', 'rb').read()); os.waitpid(pid, 0)
    new = lambda: socket.socket(socket.AF_UNIX)
    server = new(); server.bind('sock'); server.listen(1); client = new(); client.connect('sock'); peer, _ = server.accept(); client.send(b'hi')
    show(peer.recv(5), stat.S_ISSOCK(os.stat('sock').st_mode)); os.rename('sock', 'moved')
    show(works(new().connect, 'moved'), works(new().bind, 'moved')); server.close(); show(works(new().connect, 'moved'), works(os.open, 'moved', os.O_RDONLY))
    show([works(os.mknod, name, mode, dev) for name, mode, dev in (('null', stat.S_IFCHR | 0o666, os.makedev(1, 3)), ('block', stat.S_IFBLK | 0o600, os.makedev(259, 70000)), ('whiteout', stat.S_IFCHR, 0))])
    if os.path.exists('null'): show(works(put, 'null'), os.stat('null').st_rdev == os.makedev(1, 3), os.stat('block').st_rdev == os.makedev(259, 70000))
    show(tri(os.mknod, 'file', stat.S_IFREG | 0o600), tri(os.mknod, 'file', stat.S_IFREG), tri(os.mknod, 'dir', stat.S_IFDIR), tri(os.mknod, 'fifo', stat.S_IFIFO | 0o600), [tri(os.truncate, x, 0) for x in ('p', 'moved', '.')])

@item
def listings():
    libc.opendir.restype = libc.readdir.restype = ctypes.c_void_p; libc.telldir.restype = ctypes.c_long
    libc.telldir.argtypes = libc.readdir.argtypes = libc.rewinddir.argtypes = [ctypes.c_void_p]; libc.seekdir.argtypes = [ctypes.c_void_p, ctypes.c_long]
    os.mkdir('D')
    for i in range(500): put('D/f%d' % i)
    d = libc.opendir(b'D')
    def entry():
        p = libc.readdir(d)
        return ctypes.string_at(p + 19) if p else None
    seen, places = [], {}
    while True:
        at, name = libc.telldir(d), entry()
        if name is None: break
        seen.append(name); places[name] = at
    show(len(seen), len(set(seen)))
    def found_again(name): libc.seekdir(d, places[name]); return entry() == name
    show('seekdir', all(found_again(name) for name in seen[::37]))
    libc.rewinddir(d); os.unlink('D/f7'); put('D/new'); libc.rewinddir(d); again = []
    while (name := entry()) is not None: again.append(name)
    show('rewinddir', b'new' in again, b'f7' in again, len(again))
    show('d_ino', all(e.inode() == os.stat(e.path).st_ino for e in os.scandir('D')), {e.is_dir() for e in os.scandir('.')})
    fd = os.open('D', os.O_RDONLY); buffer = ctypes.create_string_buffer(65536); n = checked(libc.getdents64(fd, buffer, 65536)); at, dots = 0, {}
    while at < n:
        ino, _, length, kind = struct.unpack_from('QqHB', buffer, at); name = buffer.raw[at + 19:at + length].split(b'\0')[0]
        if name in (b'.', b'..'): dots[name] = ino, kind
        at += length
    show(dots[b'.'] == (os.stat('D').st_ino, 4), dots[b'..'] == (os.stat('.').st_ino, 4))
    for e in os.scandir('D'): os.unlink(e.path)
    show(os.listdir('D')); os.rmdir('D')
    show('removed', tri(os.listdir, fd), works(os.open, 'x', os.O_CREAT, 0o644, dir_fd=fd), works(os.mkdir, 'x', dir_fd=fd), works(os.stat, '..', dir_fd=fd), os.fstat(fd).st_nlink, tri(os.fsync, fd))

@item
def watching():
    fd = checked(libc.inotify_init1(os.O_NONBLOCK)); checked(libc.inotify_add_watch(fd, b'.', 0xfff))
    put('f'); os.chmod('f', 0o600); os.rename('f', 'g'); os.link('g', 'h'); os.unlink('h'); os.mkdir('d'); os.rmdir('d'); open('g').read(); os.truncate('g', 0); os.unlink('g'); os.symlink('a', 'b')
    data, at = os.read(fd, 65536), 0
    while at < len(data):
        _, mask, _, length = struct.unpack_from('iIII', data, at); show(hex(mask), data[at + 16:at + 16 + length].strip(b'\0')); at += 16 + length

@item
def calls():
    put('f'); fd, d = os.open('f', os.O_RDWR), os.open('.', os.O_RDONLY)
    class Handle(ctypes.Structure): _fields_ = [('bytes', ctypes.c_uint), ('type', ctypes.c_int), ('data', ctypes.c_ubyte * 128)]
    handle, mount = Handle(128, 0), ctypes.c_int(); made = works(lambda: checked(libc.name_to_handle_at(-100, b'f', ctypes.byref(handle), ctypes.byref(mount), 0))); opened = tri(lambda: checked(libc.open_by_handle_at(d, ctypes.byref(handle), os.O_RDONLY)))
    show('handle', made, opened if isinstance(opened, str) else os.fstat(opened).st_ino == os.stat('f').st_ino)
    show([works(f) for f in (lambda: os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_WILLNEED), lambda: checked(libc.sync_file_range(fd, 0, 0, 7)), lambda: checked(libc.syncfs(fd)), lambda: os.fsync(fd), lambda: os.fdatasync(fd), lambda: os.fsync(d), lambda: os.fsync(os.open('f', os.O_RDONLY)))])
    show(os.pathconf('.', 'PC_NAME_MAX'), os.statvfs('.').f_namemax, os.statvfs('.').f_frsize, os.stat('f').st_blksize)
    free = os.statvfs('.'); show(free.f_blocks >= free.f_bfree >= free.f_bavail > 0, free.f_files >= free.f_ffree > 0)
    show(os.pwritev(fd, [b'ab'], 0, os.RWF_DSYNC), os.pwritev(fd, [b'ab'], 0, os.RWF_APPEND), os.fstat(fd).st_size)
    show(tri(fcntl.fcntl, fd, fcntl.F_SETFL, os.O_APPEND | os.O_NONBLOCK), os.write(fd, b'end'), os.fstat(fd).st_size, tri(fcntl.ioctl, fd, 0x5401, bytearray(64)), tri(fcntl.ioctl, fd, 0x541B, bytearray(4)))
