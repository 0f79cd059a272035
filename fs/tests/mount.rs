//! Tests with real mounts. They need /dev/fuse and root, and fail without them.

mod common;

mod mount {
    mod control;
    mod counters;
    mod differences;
    mod files;
    mod fold;
    mod large;
    mod locks;
    mod passthrough;
    mod placeholders;
    mod random;
    mod restore;
    mod several;
    mod space;
    mod stalls;
    mod supply;
    mod support;
    mod surface;
    mod three;
    mod user;
    mod watchers;
}
