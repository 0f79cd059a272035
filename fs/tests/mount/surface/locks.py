OFD_SETLK, OFD_SETLKW = 37, 38

def lock(kind, start=0, length=10):
    return struct.pack('hhqqi4x', kind, 0, start, length, 0)

def try_posix(kind, length, start):
    fcntl.lockf(os.open('f', os.O_RDWR), kind | fcntl.LOCK_NB, length, start)
    return 'got'

def try_flock(kind):
    fcntl.flock(os.open('f', os.O_RDWR), kind | fcntl.LOCK_NB)
    return 'got'

@item
def posix_locks():
    put('f', b'x' * 100); fd = os.open('f', os.O_RDWR)
    fcntl.lockf(fd, fcntl.LOCK_EX, 10, 0)
    show([child(lambda: try_posix(*how)) for how in ((fcntl.LOCK_EX, 10, 0), (fcntl.LOCK_EX, 10, 10), (fcntl.LOCK_SH, 1, 5))])
    def who_holds():
        found = fcntl.fcntl(os.open('f', os.O_RDWR), fcntl.F_GETLK, lock(fcntl.F_WRLCK, 0, 0))
        kind, _, start, length, pid = struct.unpack('hhqqi4x', found)
        return kind, start, length, pid == os.getppid()
    show(child(who_holds))
    fcntl.lockf(fd, fcntl.LOCK_SH, 10, 0); show('shared', child(lambda: try_posix(fcntl.LOCK_EX, 1, 0)))
    os.close(os.open('f', os.O_RDONLY))
    show('any close releases', child(lambda: try_posix(fcntl.LOCK_EX, 10, 0)))

@item
def flock_and_ofd_locks():
    put('f', b'x' * 100); fd = os.open('f', os.O_RDWR); other = os.open('f', os.O_RDWR)
    fcntl.flock(fd, fcntl.LOCK_EX)
    show(child(lambda: try_flock(fcntl.LOCK_SH)), tri(fcntl.flock, other, fcntl.LOCK_EX | fcntl.LOCK_NB))
    fcntl.flock(fd, fcntl.LOCK_SH); show(child(lambda: try_flock(fcntl.LOCK_SH)), child(lambda: try_flock(fcntl.LOCK_EX)))
    fcntl.flock(fd, fcntl.LOCK_UN); show(child(lambda: try_flock(fcntl.LOCK_EX)))
    show(works(fcntl.fcntl, fd, OFD_SETLK, lock(fcntl.F_WRLCK)), works(fcntl.fcntl, other, OFD_SETLK, lock(fcntl.F_WRLCK)))
    show('against posix', child(lambda: try_posix(fcntl.LOCK_EX, 10, 0)))
    os.close(fd); show(works(fcntl.fcntl, other, OFD_SETLK, lock(fcntl.F_WRLCK)))

@item
def waiting_ends_with_a_signal():
    put('f'); fd = os.open('f', os.O_RDWR); fcntl.lockf(fd, fcntl.LOCK_EX); fcntl.flock(fd, fcntl.LOCK_EX)
    ways = {'posix': lambda f: fcntl.lockf(f, fcntl.LOCK_EX), 'flock': lambda f: fcntl.flock(f, fcntl.LOCK_EX),
            'ofd': lambda f: fcntl.fcntl(f, OFD_SETLKW, lock(fcntl.F_WRLCK))}
    for name, way in ways.items():
        def wait():
            def interrupted(*_): raise InterruptedError(errno.EINTR, 'interrupted')
            signal.signal(signal.SIGALRM, interrupted); signal.setitimer(signal.ITIMER_REAL, 0.1)
            way(os.open('f', os.O_RDWR))
            return 'got'
        show(name, child(wait))

@item
def exit_releases():
    put('f'); r, w = os.pipe(); pid = os.fork()
    if pid == 0:
        fd = os.open('f', os.O_RDWR); fcntl.lockf(fd, fcntl.LOCK_EX); fcntl.flock(fd, fcntl.LOCK_EX)
        os.write(w, b'1'); time.sleep(0.2); os._exit(0)
    os.read(r, 1); fd = os.open('f', os.O_RDWR); began = time.time()
    fcntl.lockf(fd, fcntl.LOCK_EX); fcntl.flock(fd, fcntl.LOCK_EX)
    show(time.time() - began > 0.05); os.waitpid(pid, 0)

@item
def leases_and_notices():
    put('f'); fd = os.open('f', os.O_RDWR)
    show(tri(fcntl.fcntl, fd, fcntl.F_SETLEASE, fcntl.F_WRLCK), tri(fcntl.fcntl, os.open('.', os.O_RDONLY), fcntl.F_NOTIFY, fcntl.DN_CREATE))
