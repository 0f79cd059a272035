"""What the surface scripts share: each prints what a file system does, and the test compares two of them.

A script defines functions under @item, which run each in a process and an empty directory of its own; `show` prints
what happened, with errors by name. Arguments: the directory to work in, one on another file system, and `root` or `user`.
"""
import ctypes, errno, fcntl, mmap, os, signal, socket, stat, struct, subprocess, sys, time, traceback

BASE, OTHER, WHO = sys.argv[1:4]
libc = ctypes.CDLL(None, use_errno=True)
items = []


def item(function):
    items.append(function)


def checked(result):
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def tri(function, *arguments, **named):
    """The result, or the name of the error."""
    try:
        return function(*arguments, **named)
    except OSError as error:
        return errno.errorcode.get(error.errno, error.errno)


def works(function, *arguments, **named):
    """"ok" or the name of the error, for what gives no result that can be compared."""
    try:
        function(*arguments, **named)
    except OSError as error:
        return errno.errorcode.get(error.errno, error.errno)
    return 'ok'


def show(*what):
    print('  ', *what, flush=True)


def put(path, data=b'x', mode='wb'):
    with open(path, mode) as f:
        f.write(data)


def renameat2(old, new, flags):
    return checked(libc.renameat2(-100, os.fsencode(old), -100, os.fsencode(new), flags))


def fallocate(fd, mode, offset, length):
    return checked(libc.fallocate64(fd, mode, ctypes.c_long(offset), ctypes.c_long(length)))


def child(function):
    """What the function gives in another process."""
    r, w = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(w, str(tri(function)).encode())
        os._exit(0)
    os.close(w)
    result = os.read(r, 4096).decode()
    os.close(r)
    os.waitpid(pid, 0)
    return result


def run():
    work = BASE + '/work'
    for function in items:
        print(function.__name__, flush=True)
        os.mkdir(work)
        pid = os.fork()
        if pid == 0:
            try:
                os.chdir(work)
                os.umask(0o022)
                function()
            except BaseException:
                traceback.print_exc(file=sys.stdout)
            sys.stdout.flush()
            os._exit(0)
        os.waitpid(pid, 0)
        show('removed:', subprocess.call(['rm', '-rf', work]))
