//! Mounts of a store whose objects are elsewhere.

use std::fs;
use std::sync::atomic::Ordering;

use karapace_store::Store;
use karapace_store::error::{IoContext, Result};
use karapace_store::id::ObjectId;
use karapace_store::layout::Layout;
use karapace_store::supply::Supply;

use crate::mount::support::Mount;
use elsewhere::Elsewhere;

#[path = "../../../store/src/supply/tests/elsewhere.rs"]
mod elsewhere;

#[test]
fn a_program_reads_what_the_supply_has_and_gets_eio_while_it_cannot_be_reached() {
    let mount = Mount::new();
    mount.ok(
        "python3",
        "open('large', 'wb').write(bytes(range(256)) * 8192); open('small', 'w').write('small')",
    );
    mount.commit();
    let large = fs::read(mount.path("large")).unwrap();
    let place = tempfile::tempdir().unwrap();
    let supply = Elsewhere::new(&place.path().join("elsewhere"));
    supply.take(mount.store(), |_| true);
    mount.store().objects().supply_from(supply.clone());
    for passthrough in [false, true] {
        let again = mount.again(|options| {
            options.read_only = true;
            options.passthrough = passthrough;
        });
        let path = |name: &str| again.dir.path().join(name);
        supply.is_reachable.store(false, Ordering::Relaxed);
        assert_eq!(fs::read(path("small")).unwrap_err().raw_os_error(), Some(libc::EIO));
        supply.is_reachable.store(true, Ordering::Relaxed);
        assert_eq!(fs::read(path("small")).unwrap(), b"small");
        assert!(fs::read(path("large")).unwrap() == large);
        assert!(supply.asked().contains(&ObjectId::of(b"small")));
    }
}
