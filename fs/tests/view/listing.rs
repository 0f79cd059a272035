//! Directory listings.

use karapace_store::inode::ROOT_INO;

use crate::view::support::Env;

#[test]
fn a_listing_goes_on_where_it_was_while_entries_come_and_go() {
    let mut env = Env::new();
    for i in 0..200 {
        env.file(&format!("stays{i}"), b"");
        env.file(&format!("goes{i}"), b"");
    }
    env.commit();
    let mut seen = env.names_from(0, 50);
    // In the middle of the listing half of the entries are removed, others are added, and everything is
    // committed.
    for i in 0..200 {
        env.view.unlink(ROOT_INO, format!("goes{i}").as_bytes()).unwrap();
        env.file(&format!("comes{i}"), b"");
    }
    env.commit();
    while let Some((cookie, _)) = seen.last() {
        let more = env.names_from(*cookie, 50);
        if more.is_empty() {
            break;
        }
        seen.extend(more);
    }
    for i in 0..200 {
        let name = format!("stays{i}").into_bytes();
        assert_eq!(seen.iter().filter(|(_, n)| *n == name).count(), 1, "stays{i}");
    }
}

/// A program that removes what it reads, in parts, sees every entry, except those that were removed before it
/// read them.
#[test]
fn removing_while_listing_meets_every_entry() {
    let mut env = Env::new();
    for i in 0..300 {
        env.file(&format!("lower{i}"), b"");
    }
    env.commit();
    for i in 0..300 {
        env.file(&format!("upper{i}"), b"");
    }
    let (mut from, mut met) = (0, 0);
    loop {
        let part = env.names_from(from, 7);
        let Some((last, _)) = part.last() else { break };
        from = *last;
        for (_, name) in part.iter().filter(|(_, name)| !name.starts_with(b".")) {
            env.view.unlink(ROOT_INO, name).unwrap();
            met += 1;
        }
        if met == 300 {
            let ahead = env.names_from(from, 1).remove(0).1;
            env.view.unlink(ROOT_INO, &ahead).unwrap();
            met += 1;
            assert_ne!(env.names_from(from, 1).remove(0).1, ahead);
        }
    }
    assert_eq!(met, 600);
    assert_eq!(env.names_from(0, 10).len(), 2, "only . and .. are left");
}

/// An entry that cannot be read ends a listing after the entries before it, and each of these counts as many
/// references as it was returned.
#[test]
fn a_listing_that_fails_half_way_keeps_no_references() {
    let mut env = Env::new();
    for i in 0..40 {
        env.file(&format!("f{i}"), b"x");
    }
    let linked = env.file("linked", b"two names");
    env.view.link(linked, ROOT_INO, b"other name").unwrap();
    env.commit();
    env.reopen();
    let trees = karapace_store::tree::Trees::new(env.store.clone());
    let table = trees.root(&env.view.head().root).unwrap().links.expect("a link table");
    let path = env.layout().object(&table);
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, "damage").unwrap();

    let list = |from: u64| {
        let mut taken = Vec::new();
        let listed = env.view.readdir(ROOT_INO, from, true, &mut |item| {
            taken.push((item.cookie, item.ino, item.attr.is_some()));
            true
        });
        (listed.map_err(|e| e.errno()), taken)
    };
    let before = env.view.stats().cached_inodes;
    let (first, taken) = list(0);
    assert_eq!(first, Ok(()));
    assert!(taken.len() > 2 && taken.len() < 42, "{} entries before the damaged one", taken.len());
    let (second, none) = list(taken.last().unwrap().0);
    assert_eq!((second, none.len()), (Err(libc::EIO), 0));
    for (_, ino, _) in taken.iter().filter(|(_, _, counted)| *counted) {
        env.view.forget(*ino, 1);
    }
    assert_eq!(env.view.stats().cached_inodes, before);
}
