@item
def renames():
    NOREPLACE, EXCHANGE, WHITEOUT = 1, 2, 4
    put('a', b'a'); put('b', b'b')
    show(tri(renameat2, 'a', 'b', NOREPLACE), tri(renameat2, 'a', 'c', NOREPLACE))
    show(tri(renameat2, 'c', 'b', EXCHANGE), open('c').read(), open('b').read())
    show(tri(renameat2, 'c', 'none', EXCHANGE), tri(renameat2, 'c', 'b', NOREPLACE | EXCHANGE))
    show(tri(renameat2, 'c', 'moved', WHITEOUT), tri(lambda: oct(os.lstat('c').st_mode)))
    show([tri(renameat2, 'b', 'moved', flags) for flags in (5, 6, 8)])
    put('one'); os.link('one', 'two')
    show('names of one inode', tri(os.rename, 'one', 'two'), sorted(os.listdir('.')))
    show(tri(renameat2, 'one', 'two', EXCHANGE), tri(renameat2, 'one', 'two', NOREPLACE))

@item
def directories():
    os.makedirs('d/e/f'); put('file')
    show('into itself', tri(os.rename, 'd', 'd/e/x'), tri(os.rename, 'd/e', 'd/e'), tri(os.rename, 'd', 'd/e/f'))
    show('exchanged with itself', tri(renameat2, 'd', 'd/e', 2), tri(renameat2, 'd/e', 'd', 2))
    put('d/e/f/g')
    show(tri(os.rmdir, 'd/e'), tri(os.rmdir, 'd/e/f/g'), tri(os.unlink, 'd'), tri(os.rename, 'file', 'd'), tri(os.rename, 'd', 'file'))
    os.mkdir('empty')
    show(tri(os.rename, 'empty', 'd'), tri(os.rename, 'd', 'empty'), sorted(os.listdir('.')))
    d = 'empty'
    show([tri(os.rmdir, d + x) for x in ('/.', '/..')], [tri(os.rename, d + x, 'z') for x in ('/.', '/..')])
    show(tri(os.mkdir, d + '/'), tri(os.mkdir, 'new/'), tri(os.rename, 'file', 'file/'), tri(os.unlink, 'file/'))
    show(tri(os.rename, '', 'x'), tri(os.link, d, 'x'), [tri(os.symlink, t, 'x') for t in ('', 'x' * 4096, 'x' * 4095)])
    show(tri(os.readlink, d), tri(os.link, 'none', 'x'), tri(os.link, 'file', d), tri(os.rmdir, 'none'))
    show('links', [os.stat(x).st_nlink for x in ('.', d, d + '/e', 'new')])

@item
def opening():
    show(works(os.open, 'n', os.O_CREAT | os.O_EXCL), works(os.open, 'n', os.O_CREAT | os.O_EXCL))
    os.symlink('target', 's'); os.mkdir('d')
    show(works(os.open, 's', os.O_CREAT | os.O_EXCL), works(os.open, 's', os.O_CREAT | os.O_NOFOLLOW))
    show(works(os.open, 's', os.O_CREAT | os.O_WRONLY), sorted(os.listdir('.')))
    show(works(os.open, 'd', os.O_WRONLY), works(os.open, 'd', os.O_CREAT), works(os.open, 'n', os.O_DIRECTORY))
    show(works(os.open, 'n/x', os.O_RDONLY), works(os.open, 'd/', os.O_CREAT | os.O_WRONLY), works(os.open, 'q/', os.O_CREAT | os.O_WRONLY))
    os.symlink('loop', 'loop')
    show(works(os.open, 'loop', os.O_RDONLY), works(os.stat, 'loop'))
    for i in range(45): os.symlink('k%d' % (i + 1), 'k%d' % i)
    put('k45')
    show(works(os.stat, 'k0'), works(os.stat, 'k5'), works(os.stat, 'k6'))
    put('n', b'text')
    show(works(os.open, 'n', os.O_RDONLY | os.O_TRUNC), os.stat('n').st_size)

@item
def any_bytes():
    for name in (b'\xff\xfe', b'\n', b'-rf', b'*', b' ', b'\x01', b'a\\b', '\u00e9'.encode(), b'n' * 255, b'...', b'.hidden',
                 b'.wh.foo', b'.wh..wh..opq', b'.fuse_hidden01', b'\x7f', b'"', b'.karapace'):
        show(name[:10], tri(put, name), name in os.listdir(b'.'), tri(os.unlink, name))
    long = b'n' * 256
    show(tri(put, long), tri(os.mkdir, long), tri(os.stat, long), tri(os.rename, b'x', long), tri(os.symlink, 'x', long), tri(os.unlink, long))
    show(tri(os.stat, 'x/' * 2047 + 'y'), tri(os.stat, 'x/' * 2048))

@item
def a_thousand_levels():
    at = os.open('.', os.O_RDONLY)
    for i in range(1000):
        name = 'directory-%d' % (i % 10)
        os.mkdir(name, dir_fd=at)
        below = os.open(name, os.O_RDONLY, dir_fd=at)
        os.close(at); at = below
    fd = os.open('file', os.O_CREAT | os.O_WRONLY, 0o644, dir_fd=at); os.write(fd, b'deep'); os.close(fd)
    os.fchdir(at)
    show(open('file').read(), works(os.getcwd), works(os.stat, '../' * 900))
    os.chdir(BASE + '/work')
    show(subprocess.call(['rm', '-r', 'directory-0']), os.listdir('.'))

@item
def working_directories():
    os.makedirs('a/b/c'); os.chdir('a/b/c')
    before = os.getcwd(); os.rename('../../../a', '../../../z')
    show(os.getcwd() == before.replace('/a/b/c', '/z/b/c'), os.stat('../..').st_ino == os.stat(BASE + '/work/z').st_ino)
    os.chdir('../..'); os.rename('b/c', 'c'); os.chdir('c')
    show(os.stat('..').st_ino == os.stat(BASE + '/work/z').st_ino)
    os.rmdir('../c')
    show(works(os.getcwd), tri(os.listdir, '.'), works(os.open, 'f', os.O_CREAT), works(os.mkdir, 'f'), works(os.stat, '..'), os.stat('.').st_nlink)
    os.chdir(BASE + '/work')
    show('links', os.stat('z').st_nlink, os.stat('z/b').st_nlink)

@item
def replacing():
    os.makedirs('d/e'); put('d/f', b'old')
    subprocess.call(['rm', '-r', 'd']); put('d', b'a file now'); show(open('d').read())
    os.unlink('d'); os.mkdir('d'); show(os.listdir('d'), works(os.stat, 'd/e'))
    put('d/f', b'new'); show(open('d/f').read(), works(os.rmdir, 'd')); os.unlink('d/f'); show(works(os.rmdir, 'd'))
    os.symlink('elsewhere', 'd'); show(os.readlink('d')); os.rename('d', 'e'); os.mkfifo('d'); show(stat.S_ISFIFO(os.stat('d').st_mode))
