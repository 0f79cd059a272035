//! Tests with real mounts. They need /dev/fuse and root, and fail without them.

mod common;

mod mount {
    mod control;
    mod differences;
    mod files;
    mod large;
    mod passthrough;
    mod placeholders;
    mod random;
    mod restore;
    mod several;
    mod space;
    mod supply;
    mod support;
    mod surface;
    mod user;
    mod watchers;
}
