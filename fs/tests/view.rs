//! Guarantees of the view that need no mount, one per test.

mod common;

mod view {
    mod attributes;
    mod damage;
    mod data;
    #[cfg(feature = "failpoints")]
    mod fresh;
    mod listing;
    mod names;
    mod restore;
    mod support;
    mod walk;
}
