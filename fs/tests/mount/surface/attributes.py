@item
def namespaces():
    put('f'); os.mkdir('d'); os.symlink('f', 's'); os.mkfifo('p')
    for path in 'fdsp':
        for name in ('user.a', 'trusted.a', 'security.a', 'system.a', 'bogus.a', 'nodots'):
            calls = [(os.setxattr, (path, name, b'v')), (os.getxattr, (path, name)), (os.removexattr, (path, name))]
            show(path, name, [tri(call, *arguments, follow_symlinks=False) for call, arguments in calls])
    show([tri(os.setxattr, 'f', name, b'v') for name in ('user.' + 'n' * 250, 'user.' + 'n' * 251, 'user.', '')])
    show([tri(os.setxattr, 'f', 'user.v', b'v' * n) for n in (0, 1000, 65537)])
    CREATE, REPLACE = os.XATTR_CREATE, os.XATTR_REPLACE
    show([tri(os.setxattr, 'f', name, b'1', flags) for name, flags in (('user.c', CREATE), ('user.c', CREATE), ('user.none', REPLACE), ('user.c', REPLACE), ('user.c', 3), ('user.c', 4))])
    buffer = ctypes.create_string_buffer(1); os.setxattr('f', 'user.big', b'abc')
    show(tri(lambda: checked(libc.getxattr(b'f', b'user.big', buffer, 1))), tri(lambda: checked(libc.listxattr(b'f', buffer, 1))), tri(lambda: checked(libc.getxattr(b'f', b'user.big', None, 0))))
    show([len(name) for name in sorted(os.listxattr('f'))], tri(os.getxattr, 'f', 'user.none'), tri(os.removexattr, 'f', 'user.none'))

@item
def modes_by_access_lists():
    acl = lambda *entries: struct.pack('<I', 2) + b''.join(struct.pack('<HHI', tag, bits, 0xffffffff) for tag, bits in entries)
    # Asked for the mode alone, as ls does, the kernel may answer from what it holds.
    mode = lambda: subprocess.run(['stat', '-c', '%a', 'f'], capture_output=True).stdout
    put('f'); os.chmod('f', 0o731); show(mode())
    for entries in ((1, 6), (4, 0), (32, 0)), ((1, 7), (4, 4), (16, 2), (32, 1)):
        show(tri(os.setxattr, 'f', 'system.posix_acl_access', acl(*entries)), mode())
    show(tri(os.removexattr, 'f', 'system.posix_acl_access'), mode())

@item
def capabilities():
    setcap = lambda path: subprocess.run(['setcap', 'cap_net_raw+ep', path], capture_output=True).returncode
    has = lambda path: works(os.getxattr, path, 'security.capability')
    put('t'); show(setcap('t'), has('t'))
    put('t', b'', 'ab'); show('opened', has('t')); put('t', b'x', 'ab'); show('written', has('t'))
    for name, change in (('chown', lambda: os.chown('t', os.getuid(), os.getgid())), ('truncate', lambda: os.truncate('t', 1)), ('chmod', lambda: os.chmod('t', 0o700)), ('link', lambda: os.link('t', 't2'))):
        setcap('t'); change(); show(name, has('t'))

@item
def set_id_bits():
    def write():
        fd = os.open('f', os.O_WRONLY); os.pwrite(fd, b'z', 5); os.close(fd)
    def allocate():
        fd = os.open('f', os.O_WRONLY); fallocate(fd, 0, 0, 1000); os.close(fd)
    def store():
        fd = os.open('f', os.O_RDWR); m = mmap.mmap(fd, 100); m[0:1] = b'q'; m.flush(); m.close(); os.close(fd)
    def copy():
        put('g', b'hello'); a = os.open('g', os.O_RDONLY); b = os.open('f', os.O_WRONLY); os.copy_file_range(a, b, 5); os.close(a); os.close(b)
    changes = dict(write=write, truncate=lambda: os.truncate('f', 5), chown=lambda: os.chown('f', os.getuid(), os.getgid()), chown_to_none=lambda: os.chown('f', -1, -1),
                   allocate=allocate, store=store, copy=copy, setxattr=lambda: os.setxattr('f', 'user.x', b'1'), utime=lambda: os.utime('f'), link=lambda: os.link('f', 'l'))
    for name, change in changes.items():
        modes = []
        for mode in (0o6777, 0o6767, 0o2755, 0o2745):
            put('f', b'x' * 100); os.chmod('f', mode); change(); modes.append(oct(os.stat('f').st_mode & 0o7777)); os.unlink('f')
            if os.path.exists('l'): os.unlink('l')
        show(name, modes)
    os.mkdir('sg'); os.chmod('sg', 0o2777); os.mkdir('sg/sub'); put('sg/f')
    show([oct(os.stat(p).st_mode) for p in ('sg', 'sg/sub', 'sg/f')]); os.chown('sg', os.getuid(), os.getgid()); show(oct(os.stat('sg').st_mode))
    os.mkdir('m', 0o7777); os.mknod('n', 0o7777 | stat.S_IFREG); os.open('o', os.O_CREAT | os.O_WRONLY, 0o7777); show([oct(os.stat(p).st_mode) for p in 'mno'])

@item
def sticky_and_foreign():
    if WHO != 'root': return
    os.mkdir('t'); os.chmod('t', 0o1777); os.mkdir('sg'); os.chown('sg', 0, 4321); os.chmod('sg', 0o2777)
    put('t/mine'); put('readable'); os.chmod('readable', 0o640); os.chmod('.', 0o755)
    def other():
        os.setgroups([]); os.setgid(1234); os.setuid(1234)
        put('t/his'); os.mkdir('sg/his'); put('sg/file')
        os.chmod('sg/file', 0o2755)
        return [works(os.unlink, 't/mine'), works(os.rename, 't/mine', 't/x'), works(open, 'readable'), works(put, 'new'), works(os.chmod, 't/mine', 0o777), works(os.chown, 't/his', 1, -1), works(os.utime, 't/mine'), works(os.setxattr, 't/mine', 'user.a', b'1'), works(os.link, 't/mine', 't/link'), works(os.unlink, 't/his')]
    show(child(other)); show([(s.st_uid, s.st_gid, oct(s.st_mode)) for s in map(os.stat, ('sg/his', 'sg/file'))])
    for owner in ((1234, 1234), (-1, 1234), (1234, -1), (0, 0)):
        put('c'); os.chmod('c', 0o6755); os.chown('c', *owner); show(owner, oct(os.stat('c').st_mode)); os.unlink('c')

@item
def times():
    put('f')
    for t in (0, 1, -1, -1500000000, (2 ** 32) * 10 ** 9 + 123, 15032385535 * 10 ** 9): os.utime('f', ns=(t, t)); s = os.stat('f'); show(t, s.st_atime_ns, s.st_mtime_ns)
    NOW, OMIT = (1 << 30) - 1, (1 << 30) - 2
    class Spec(ctypes.Structure): _fields_ = [('s', ctypes.c_long), ('n', ctypes.c_long)]
    set_times = lambda a, m: checked(libc.utimensat(-100, b'f', (Spec * 2)(Spec(*a), Spec(*m)), 0))
    both = lambda: (os.stat('f').st_atime_ns, os.stat('f').st_mtime_ns)
    os.utime('f', ns=(5, 6)); show(tri(set_times, (0, OMIT), (7, 8)), both(), tri(set_times, (9, 9), (0, OMIT)), both(), tri(set_times, (0, 10 ** 9), (0, 0)))
    c = os.stat('f').st_ctime_ns; time.sleep(0.02); show(tri(set_times, (0, OMIT), (0, OMIT)), os.stat('f').st_ctime_ns == c)
    set_times((0, NOW), (0, NOW)); show(abs(both()[1] - time.time_ns()) < 10 ** 9, both()[0] == both()[1])

@item
def what_changes_which_time():
    os.mkdir('d'); put('f'); put('g')
    def changes(name, path, change, later=None):
        before = os.lstat(path); time.sleep(0.012); change(); after = os.lstat(later or path)
        show(name, 'ctime' if after.st_ctime_ns > before.st_ctime_ns else '-', 'mtime' if after.st_mtime_ns > before.st_mtime_ns else '-')
    me = os.getuid()
    changes('chmod', 'f', lambda: os.chmod('f', 0o600)); changes('chmod to the same', 'f', lambda: os.chmod('f', 0o600))
    changes('chown', 'f', lambda: os.chown('f', me, -1)); changes('chown to none', 'f', lambda: os.chown('f', -1, -1))
    changes('link', 'f', lambda: os.link('f', 'l')); changes('link, its directory', '.', lambda: os.link('f', 'l2')); changes('unlink', 'f', lambda: os.unlink('l'))
    changes('rename', 'f', lambda: os.rename('l2', 'l3')); changes('rename into', 'd', lambda: os.rename('l3', 'd/l')); changes('rename out of', 'd', lambda: os.rename('d/l', 'l3'))
    changes('write', 'f', lambda: put('f', b'1', 'r+b')); changes('write nothing', 'f', lambda: put('f', b'', 'r+b'))
    changes('truncate to the same', 'f', lambda: os.truncate('f', 1)); changes('O_TRUNC', 'f', lambda: put('f', b'')); changes('O_TRUNC of nothing', 'f', lambda: put('f', b''))
    changes('setxattr', 'f', lambda: os.setxattr('f', 'user.a', b'1')); changes('removexattr', 'f', lambda: os.removexattr('f', 'user.a')); changes('utime', 'f', lambda: os.utime('f', ns=(1, 1)))
    changes('mkdir in', 'd', lambda: os.mkdir('d/x')); changes('rmdir in', 'd', lambda: os.rmdir('d/x')); changes('symlink in', 'd', lambda: os.symlink('q', 'd/s'))
    changes('lchown', 'd/s', lambda: os.chown('d/s', me, -1, follow_symlinks=False)); changes('lutime', 'd/s', lambda: os.utime('d/s', ns=(3, 3), follow_symlinks=False))
    changes('rename a directory', 'd', lambda: os.rename('d', 'dd'), 'dd'); os.mkdir('e'); changes('move a directory', 'dd', lambda: os.rename('dd', 'e/dd'), 'e/dd')
    changes('exchange', 'g', lambda: renameat2('g', 'f', 2), 'f'); changes('read', 'g', lambda: open('g').read()); changes('list', 'e', lambda: os.listdir('e'))
    fd = os.open('g', os.O_RDONLY); put('h'); before = os.fstat(fd); time.sleep(0.012); os.rename('h', 'g'); show('replaced', os.fstat(fd).st_ctime_ns > before.st_ctime_ns)
    to = os.open('g', os.O_RDWR); put('h', b'bytes'); before = os.fstat(to); time.sleep(0.012); os.copy_file_range(os.open('h', os.O_RDONLY), to, 5); show('copy_file_range', os.fstat(to).st_mtime_ns > before.st_mtime_ns)

@item
def set_id_and_an_inherited_descriptor():
    if WHO != 'root': return
    # stat(1) asks for the mode alone, which the kernel answers from what it keeps.
    mode = lambda: subprocess.check_output(['stat', '-c', '%a', 'p'])
    put('p', b'text'); os.chmod('p', 0o6755); fd = os.open('p', os.O_WRONLY); show(mode())
    def write(): os.setgroups([]); os.setgid(1234); os.setuid(1234); return os.write(fd, b'y')
    show(child(write), mode())

@item
def access_control_lists():
    N = 0xffffffff
    acl = lambda *entries: struct.pack('<I', 2) + b''.join(struct.pack('<HHI', *e) for e in entries)
    owner, group, other, mask, user = (1, 6, N), (4, 4, N), (32, 4, N), (16, 7, N), (2, 7, 1000)
    put('f'); os.mkdir('d')
    values = dict(minimal=acl(owner, group, other), full=acl(owner, user, group, mask, other), junk=b'junk', empty=b'', no_entry=acl(), no_mask=acl(owner, user, group, other), bad_permission=acl((1, 9, N), group, other),
                  bad_order=acl(group, owner, other), twice=acl(owner, owner, group, other), bad_version=b'\x01\0\0\0' + acl(owner, group, other)[4:], bad_tag=acl(owner, group, other, (64, 1, N)))
    for name, value in values.items():
        for kind in ('access', 'default'):
            for path in 'fd':
                attribute = 'system.posix_acl_' + kind; os.chmod(path, 0o755); removed = tri(os.removexattr, path, attribute)
                show(name, kind, path, removed, tri(os.setxattr, path, attribute, value), oct(os.stat(path).st_mode), tri(os.getxattr, path, attribute))
    os.mkdir('i'); os.setxattr('i', 'system.posix_acl_default', acl((1, 7, N), user, (4, 5, N), mask, (32, 0, N)))
    put('i/f'); os.mkdir('i/d'); os.mkdir('i/e', 0o700); os.mkfifo('i/p'); os.symlink('x', 'i/s'); os.chmod('i/e', 0o750)
    for name in 'fdeps': show(name, oct(os.lstat('i/' + name).st_mode), sorted((a, os.getxattr('i/' + name, a, follow_symlinks=False)) for a in os.listxattr('i/' + name, follow_symlinks=False)))
    if WHO == 'root':
        put('g', b'text'); os.chmod('.', 0o755); os.chmod('g', 0o600); os.setxattr('g', 'system.posix_acl_access', acl(owner, (2, 4, 1234), (4, 0, N), (16, 4, N), (32, 0, N)))
        def can(uid, mode):
            def attempt(): os.setgroups([]); os.setgid(uid); os.setuid(uid); open('g', mode)
            return child(attempt)
        show([can(uid, mode) for uid in (1234, 1235) for mode in ('r', 'a')]); os.chmod('g', 0o600); show(can(1234, 'r'))
