@item
def direct():
    put('f', bytes(range(256)) * 64); fd = os.open('f', os.O_RDWR | os.O_DIRECT)
    page = mmap.mmap(-1, 8192); page[:] = b'z' * 8192
    show(os.pwritev(fd, [page], 4096), os.preadv(fd, [page], 0), page[:4], page[4096:4100])
    show('at the end', os.preadv(fd, [page], 12288), os.preadv(fd, [page], 16384))
    put('f', b'cached', 'r+b'); os.preadv(fd, [page], 0); show(page[:6])

@item
def holes():
    fd = os.open('f', os.O_RDWR | os.O_CREAT)
    os.pwrite(fd, b'x' * 65536, 0); os.ftruncate(fd, 10 << 20); os.pwrite(fd, b'y' * 65536, 4 << 20)
    DATA, HOLE, END = os.SEEK_DATA, os.SEEK_HOLE, 10 << 20
    where = [(0, DATA), (0, HOLE), (65536, DATA), (4 << 20, HOLE), ((4 << 20) + 65536, DATA), (END, DATA), (END, HOLE), (-1, DATA), (END - 1, HOLE), (END - 1, DATA)]
    show([tri(os.lseek, fd, at, whence) for at, whence in where], tri(os.lseek, fd, 0, 9), tri(os.lseek, fd, -5, 0))
    show(tri(os.pread, fd, 4, -1), tri(os.pwrite, fd, b'x', (1 << 63) - 1), tri(os.ftruncate, fd, -1), tri(os.ftruncate, fd, 1 << 43), os.fstat(fd).st_size)

@item
def allocation():
    KEEP, PUNCH, ZERO = 1, 2, 16
    fd = os.open('f', os.O_RDWR | os.O_CREAT)
    show(tri(fallocate, fd, 0, 0, 100000), os.fstat(fd).st_size, os.fstat(fd).st_blocks >= 192)
    show(tri(fallocate, fd, KEEP, 0, 1000000), os.fstat(fd).st_size)
    os.pwrite(fd, b'x' * 300000, 0)
    show(tri(fallocate, fd, KEEP | PUNCH, 65536, 65536), os.pread(fd, 2, 65535), os.pread(fd, 2, 131071), os.fstat(fd).st_size)
    show(tri(fallocate, fd, PUNCH, 65536, 65536), tri(fallocate, fd, ZERO, 10, 20), os.pread(fd, 22, 9))
    show([(tri(fallocate, fd, mode, 299990, 20), os.fstat(fd).st_size) for mode in (ZERO | KEEP, ZERO)])
    show([tri(fallocate, fd, 0, *r) for r in ((0, 0), (-1, 5), (0, -5), ((1 << 63) - 10, 100), (1 << 60, 1 << 20))])
    show(tri(fallocate, fd, KEEP | PUNCH, 1 << 40, 4096), os.fstat(fd).st_size)
    os.mkfifo('p')
    for other in (os.open('f', os.O_RDONLY), os.open('.', os.O_RDONLY), os.open('p', os.O_RDWR)): show(tri(fallocate, other, 0, 0, 10))
    for mode in (KEEP | PUNCH, KEEP):
        before = os.stat('f'); time.sleep(0.02); fallocate(fd, mode, 0, 4096); after = os.stat('f')
        show('times', after.st_mtime_ns > before.st_mtime_ns, after.st_ctime_ns > before.st_ctime_ns)
    show(works(os.posix_fallocate, fd, 0, 2000000), os.fstat(fd).st_size)

@item
def copying():
    data = os.urandom(3 << 20); put('from', data); put(OTHER + '/from', data)
    def all_of(step):
        done = 0
        while done < len(data):
            n = step(done)
            if n == 0: break
            done += n
        return done
    for source in ('from', OTHER + '/from'):
        a = os.open(source, os.O_RDONLY)
        def splice(done):
            n = left = os.splice(a, pipe[1], 65536)
            while left: left -= os.splice(pipe[0], b, left)
            return n
        ways = [lambda done: os.sendfile(b, a, done, len(data) - done), splice]
        if source == 'from': ways.append(lambda done: os.copy_file_range(a, b, len(data) - done))
        for way in ways:
            pipe = os.pipe(); b = os.open('to', os.O_RDWR | os.O_CREAT | os.O_TRUNC); os.lseek(a, 0, 0)
            show(tri(all_of, way), os.pread(b, len(data) + 1, 0) == data)
            os.close(b); os.close(pipe[0]); os.close(pipe[1])
    show('from another file system', tri(os.copy_file_range, a, os.open('to', os.O_RDWR), 100))
    a = os.open('from', os.O_RDWR)
    show([tri(os.copy_file_range, a, a, 100, 0, to) for to in (50, 500)], tri(os.copy_file_range, os.open('.', os.O_RDONLY), a, 100))
    show(tri(os.copy_file_range, a, a, 100, 10 << 20, 20 << 20), tri(os.copy_file_range, a, os.open('from', os.O_RDONLY), 100, 0, 1 << 20))
    show(subprocess.call(['cp', OTHER + '/from', 'cp']), subprocess.call(['cmp', 'cp', OTHER + '/from']))

@item
def mappings():
    put('f', b'a' * 8192); fd = os.open('f', os.O_RDWR)
    shared = mmap.mmap(fd, 8192); private = mmap.mmap(fd, 8192, access=mmap.ACCESS_COPY)
    shared[0:5] = b'HELLO'; shared.flush(); private[100:103] = b'xyz'
    show(os.pread(fd, 5, 0), os.pread(fd, 3, 100), private[100:103], shared[100:103])
    os.pwrite(fd, b'WRITE', 200); show(shared[200:205], mmap.mmap(fd, 8192)[0:5])
    before = os.stat('f'); time.sleep(0.02); shared[10:11] = b'q'; shared.flush(); after = os.stat('f')
    show('times', after.st_mtime_ns > before.st_mtime_ns, after.st_ctime_ns > before.st_ctime_ns)
    os.ftruncate(fd, 4096); pid = os.fork()
    if pid == 0:
        shared[5000]; os._exit(0)
    show('beyond the end', os.WTERMSIG(os.waitpid(pid, 0)[1]))
    os.ftruncate(fd, 0); os.ftruncate(fd, 4096); m = mmap.mmap(fd, 4096); os.ftruncate(fd, 10)
    m[0:20] = b'0123456789abcdefghij'; m.flush(); show(os.fstat(fd).st_size, os.pread(fd, 100, 0))
    os.ftruncate(fd, 20); show('what was stored behind the end is not kept', os.pread(fd, 100, 0))
    show(works(mmap.mmap, os.open('.', os.O_RDONLY), 10), works(mmap.mmap, os.open('f', os.O_WRONLY), 10, prot=mmap.PROT_READ), works(mmap.mmap, os.open('f', os.O_RDONLY), 10))

@item
def execution():
    subprocess.check_call(['cp', '/bin/sleep', 'sleep']); running = subprocess.Popen(['./sleep', '9']); time.sleep(0.1)
    show('while it runs', works(os.open, 'sleep', os.O_WRONLY), works(os.truncate, 'sleep', 0), works(os.unlink, 'sleep')); running.kill(); running.wait()
    subprocess.check_call(['cp', '/bin/true', 'true']); fd = os.open('true', os.O_RDWR)
    show('while it is written', works(subprocess.call, ['./true'])); os.close(fd); show(subprocess.call(['./true']))
    put('script', b'#!/bin/sh\nexit 3\n'); os.chmod('script', 0o755); show(subprocess.call(['./script']))
    os.chmod('script', 0o644); show(works(subprocess.call, ['./script']), [os.access('script', m) for m in (os.F_OK, os.R_OK, os.W_OK, os.X_OK)])

@item
def two_who_append():
    put('f', b''); pids = []
    for k in range(2):
        pid = os.fork()
        if pid == 0:
            fd = os.open('f', os.O_WRONLY | os.O_APPEND)
            for i in range(500): os.write(fd, b'%d%03d\n' % (k, i))
            os._exit(0)
        pids.append(pid)
    for pid in pids: os.waitpid(pid, 0)
    lines = open('f').read().split(); mine = [l for l in lines if l[0] == '0']
    show(len(lines), len(set(lines)), mine == sorted(mine))
    fd = os.open('f', os.O_RDWR | os.O_APPEND); show(os.pwrite(fd, b'tail', 0), os.pread(fd, 4, 0) != b'tail', os.pread(fd, 9, 5000))
    os.open('f', os.O_WRONLY | os.O_APPEND | os.O_TRUNC); show(os.fstat(fd).st_size)
    show(tri(fcntl.fcntl, fd, fcntl.F_SETFL, 0), os.pwrite(fd, b'x', 10), os.fstat(fd).st_size)

@item
def limits_of_the_caller():
    import resource
    put('f'); fd = os.open('f', os.O_RDWR)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (10000, 10000))
    show(tri(os.pwrite, fd, b'x' * 20000, 0), tri(os.pwrite, fd, b'x', 10000), tri(os.ftruncate, fd, 10001), tri(os.ftruncate, fd, 9999), tri(fallocate, fd, 0, 0, 20000), os.fstat(fd).st_size)

@item
def unlinked():
    put('f', b'content'); fd = os.open('f', os.O_RDWR); os.unlink('f')
    show(os.fstat(fd).st_nlink, os.pread(fd, 10, 0), os.pwrite(fd, b'more', 7), os.fstat(fd).st_size, tri(os.fchmod, fd, 0o600), tri(os.ftruncate, fd, 3), os.pread(fd, 10, 0))
    show(tri(os.setxattr, fd, 'user.a', b'1'), tri(os.getxattr, fd, 'user.a'), tri(os.fchown, fd, os.getuid(), -1), tri(os.utime, fd, ns=(1, 1)), tri(os.fsync, fd))
    show('a name again', works(lambda: checked(libc.linkat(-100, b'/proc/self/fd/%d' % fd, -100, b'back', 0x400))), works(os.open, '/proc/self/fd/%d' % fd, os.O_RDONLY))
    m = mmap.mmap(fd, 3); os.close(fd); show(m[:3])
    put('e'); fd = os.open('e', os.O_RDWR); os.link('e', 'e2'); os.unlink('e'); show(os.fstat(fd).st_nlink); os.unlink('e2'); show(os.fstat(fd).st_nlink)
    put('old', b'old'); fd = os.open('old', os.O_RDONLY); put('new', b'new'); os.rename('new', 'old'); show(os.read(fd, 9), os.fstat(fd).st_nlink, open('old').read())
