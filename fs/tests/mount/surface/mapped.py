class Writer:
    """A process that stores through a mapping of a file that it has closed. For close(2), in a child too, writes pages back."""

    def __init__(self, name, size=0):
        self.answers, answer = os.pipe(); command, self.commands = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self.commands)
            fd = os.open(name, os.O_RDWR | os.O_CREAT)
            if size: os.ftruncate(fd, size)
            m = mmap.mmap(fd, 0); os.close(fd); os.write(answer, b'.')
            for line in os.fdopen(command): exec(line, {'m': m}); os.write(answer, b'.')
            os._exit(0)
        os.close(answer); os.close(command); self.wait()

    def wait(self):
        if os.read(self.answers, 1) != b'.': raise SystemExit('the writer died')

    def do(self, line): os.write(self.commands, line.encode() + b'\n'); self.wait()
    def store(self, *at): [self.do("m[%d:%d] = b'hello'" % (a, a + 5)) for a in at]
    def end(self): os.close(self.commands); os.close(self.answers); os.waitpid(self.pid, 0)

MB = 1 << 20

def seeks(fd, offsets=(0, 65536, MB // 2)):
    return [(tri(os.lseek, fd, at, os.SEEK_DATA), tri(os.lseek, fd, at, os.SEEK_HOLE)) for at in offsets]

@item
def a_hole_is_none_where_another_process_stored():
    w = Writer('f', MB); fd = os.open('f', os.O_RDONLY)
    w.store(0); show(os.fstat(fd).st_blocks > 0, seeks(fd))
    w.store(MB // 2 - 3, 300000); show(seeks(fd), seeks(fd))
    # Again, now that the file has data.
    w.store(131072, MB - 5); show(seeks(fd, range(0, MB, 32768)))
    w.do("m[:] = b'x' * len(m)"); show(seeks(fd), os.fstat(fd).st_blocks)
    w.end()

@item
def copies_have_what_another_process_stored():
    for name, copy in (('cp', 'cp f g'), ('cp -a', 'cp -a f g'), ('sparse', 'cp --sparse=always f g'), ('tar', 'tar -cf - f | tar -xOf - > g'), ('tar -S', 'tar -Scf t f 2>&1 | grep -v "changed as we read"; tar -xOf t > g'), ('cat', 'cat f > g'), ('dd', 'dd if=f of=g bs=4k conv=sparse status=none; truncate -s 1M g')):
        for at in ([0], [5000, 700000], [MB - 5]):
            w = Writer('f', MB); w.store(*at)
            subprocess.call(copy, shell=True); data = open('g', 'rb').read()
            show(name, len(data), [data[a:a + 5] for a in at], data.count(0))
            w.end(); os.unlink('f'); os.unlink('g')

@item
def other_calls_see_it_too():
    def case(name, call, at=0):
        w = Writer('f', MB); fd = os.open('f', os.O_RDWR); w.store(at); show(name, call(fd, w)); w.end(); os.close(fd); os.unlink('f')
    page = mmap.mmap(-1, 4096); to = os.open('to', os.O_RDWR | os.O_CREAT)
    case('O_DIRECT', lambda fd, w: (os.preadv(os.open('f', os.O_RDONLY | os.O_DIRECT), [page], 0), page[:5]))
    case('O_DIRECT beside', lambda fd, w: (os.pwritev(os.open('f', os.O_WRONLY | os.O_DIRECT), [page], 4096), os.pread(fd, 5, 0)))
    case('copy_file_range', lambda fd, w: (os.copy_file_range(fd, to, 100, 0, 0), os.pread(to, 5, 0)))
    case('sendfile', lambda fd, w: (os.lseek(to, 0, 0), os.sendfile(to, fd, 0, 100), os.pread(to, 5, 0)))
    for mode in (3, 16):
        case('within a page', lambda fd, w: (fallocate(fd, mode, 0, 102), os.pread(fd, 8, 98), seeks(fd)[0]), 100)
        case('beside', lambda fd, w: (fallocate(fd, mode, 0, 65536), os.pread(fd, 5, 70000)), 70000)
        case('over it', lambda fd, w: (fallocate(fd, mode, 0, 65536), w.do('m.flush()'), os.pread(fd, 5, 0)))
        case('over it, and again', lambda fd, w: (fallocate(fd, mode, 0, 65536), w.store(0), os.pread(fd, 5, 0)))
    case('punched', lambda fd, w: (fallocate(fd, 3, 0, 65536), seeks(fd)))
    case('cut', lambda fd, w: (os.ftruncate(fd, 3), os.ftruncate(fd, MB), os.pread(fd, 5, 0), seeks(fd)))
    case('renamed', lambda fd, w: (os.rename('f', 'g'), seeks(fd), os.rename('g', 'f')))
    case('linked', lambda fd, w: (os.link('f', 'g'), seeks(os.open('g', os.O_RDONLY)), os.unlink('g')))
    case('without a name', lambda fd, w: (os.unlink('f'), seeks(fd), put('f')))
    case('the end', lambda fd, w: (os.lseek(fd, 0, os.SEEK_END), os.fstat(fd).st_size))

@item
def a_time_that_was_set_outlives_write_back():
    for push in ('m.flush()', 'm.close()'):
        w = Writer('f', MB); w.store(0); os.utime('f', ns=(5, 6)); w.do(push); show(push, os.stat('f').st_mtime_ns)
        w.end(); os.unlink('f')
    put('g', b'x' * 8192); w = Writer('g'); w.store(100); w.do('m.flush()'); w.store(5000); os.utime('g', ns=(5, 6)); w.do('m.close()')
    show(os.stat('g').st_mtime_ns, open('g', 'rb').read()[5000:5005]); w.end()
    # What is stored later counts.
    w = Writer('f', MB); os.utime('f', ns=(5, 6)); w.store(0); w.do('m.flush()'); show(os.stat('f').st_mtime_ns > 6); w.end()
