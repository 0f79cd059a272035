//! Many entries while they change.

use crate::mount::support::Mount;

/// Of 100,000 names, half of them in the lower view, each that stays is listed exactly once while others come
/// and go; and a program that removes what it reads terminates.
#[test]
fn a_hundred_thousand_entries_while_others_come_and_go() {
    let mount = Mount::new();
    mount.ok("python3", "import os\nos.mkdir('d')\nfor i in range(50000): os.mknod('d/stays-%d' % i)");
    mount.commit();
    mount.ok(
        "python3",
        r#"
import os
for i in range(50000, 100000): os.mknod('d/stays-%d' % i)
for i in range(2000): os.mknod('d/goes-%d' % i)
seen, came, gone = {}, 0, 0
with os.scandir('d') as entries:
    for n, e in enumerate(entries):
        seen[e.name] = seen.get(e.name, 0) + 1
        if n % 50 == 0:
            os.mknod('d/comes-%d' % came); came += 1
            if gone < 2000: os.unlink('d/goes-%d' % gone); gone += 1
assert sum(name.startswith('stays-') for name in seen) == 100000, len(seen)
assert max(seen.values()) == 1
inodes = {e.name: e.inode() for e in os.scandir('d')}
assert len(inodes) == 100000 + came + (2000 - gone)
assert all(os.lstat('d/' + name).st_ino == inodes[name] for name in list(inodes)[::97])
for e in os.scandir('d'): os.unlink(e.path)
assert os.listdir('d') == []
os.rmdir('d')
"#,
    );
}
