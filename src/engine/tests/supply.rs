//! Environments whose objects are not in the store, and promised by a supply.

use std::path::Path;

use karapace_store::Store;
use karapace_store::error::{IoContext, Result};
use karapace_store::id::ObjectId;
use karapace_store::layout::Layout;
use karapace_store::supply::Supply;

use super::*;
use crate::engine::export::image::{Format, Target, Wanted};
use elsewhere::Elsewhere;

#[path = "../../../store/src/supply/tests/elsewhere.rs"]
mod elsewhere;

impl Place {
    fn exported(&self, env: &Metadata, format: Format) -> Vec<u8> {
        let (mut out, name) = (Vec::new(), Path::new("the archive"));
        let wanted = Wanted { snapshot: None, format, paths: &[], compression: None };
        self.engine.export(&self.reload(env), &wanted, Target::Stream(&mut out, name), &Silent).unwrap();
        out
    }

    /// The bytes that an environment refers to in the store, and those of its files.
    fn used(&self, env: &Metadata) -> (u64, u64) {
        let usage = self.engine.usage_of(env).unwrap().0;
        (usage.bytes, usage.apparent_bytes)
    }
}

#[test]
fn an_environment_whose_objects_are_promised_is_used_like_any_other() {
    let place = Place::new();
    let large: Vec<u8> = (0..3 << 20).map(|at: u32| (at >> 10) as u8).collect();
    fs::write(place.rootfs().join("large"), &large).unwrap();
    fs::write(place.rootfs().join("note"), "base").unwrap();
    let env = place.import("dev");
    let exported = [Format::Tar, Format::Oci].map(|format| place.exported(&env, format));
    let (bytes, apparent) = place.used(&env);
    let store = place.engine.store();
    let supply = Elsewhere::new(&place.dir.path().join("elsewhere"));
    let moved = supply.take(store, |_| true);
    assert!(moved > large.len() as u64);
    store.objects().supply_from(supply.clone());

    assert_eq!(place.used(&env), (bytes - moved, apparent));
    assert!(!supply.asked().contains(&ObjectId::of(b"base")));
    assert_eq!([Format::Tar, Format::Oci].map(|format| place.exported(&env, format)), exported);
    assert!(supply.asked().contains(&ObjectId::of(b"base")));

    // Reads and writes fetch, and what is written is stored here.
    let instance = place.open(&env);
    assert_eq!(read(instance.view(), "note").unwrap(), "base");
    assert!(supply.asked().contains(&ObjectId::of(b"base")));
    let ino = instance.view().lookup(ROOT_INO, b"large").unwrap().ino;
    let mut got = Vec::new();
    instance.view().read(ino, 0, 4 << 20, &mut got).unwrap();
    assert!(got == large);
    instance.view().write(ino, 0, b"new", false).unwrap();
    write(instance.view(), "note", "changed");
    commit(&instance, Some("one"));
    instance.close().unwrap();
    drop(instance);

    let collected = gc::collect(&place.engine, false, &Silent).unwrap();
    assert_eq!(collected.objects, 0);
    let repaired = verify::verify_and_repair(&place.engine, &Silent).unwrap();
    assert_eq!(repaired.actions, []);
    let findings: Vec<_> = repaired.after.findings.iter().map(|finding| &finding.message).collect();
    assert_eq!(findings, [""; 0]);
    place.engine.restore(&place.reload(&env), "base", &[], None).unwrap();
    assert_eq!(read(place.open(&env).view(), "note").unwrap(), "base");
}
