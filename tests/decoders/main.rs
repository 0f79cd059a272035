//! Every decoder, fed what its encoder wrote and what becomes of that by mutation: no panic, and little
//! memory. Deterministic; scripts/fuzz searches further with the same targets and seeds.

mod seeds;
mod sys;
mod targets;

use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

/// What a decoder may allocate for an input of at most 64 KiB.
const MOST: usize = 64 << 20;

/// Inputs tried for each decoder.
const CASES: u32 = 400;

/// A change at a place in the input.
#[derive(Debug, Clone)]
enum Change {
    Set(usize, u8),
    Insert(usize, Vec<u8>),
    Remove(usize, usize),
    Cut(usize),
}

fn change() -> impl Strategy<Value = Change> {
    let at = any::<usize>;
    prop_oneof![
        4 => (at(), any::<u8>()).prop_map(|(at, byte)| Change::Set(at, byte)),
        2 => (at(), prop_oneof![Just(0), Just(0x7f), Just(0x80), Just(0xff)]).prop_map(|(at, byte)| Change::Set(at, byte)),
        1 => (at(), prop::collection::vec(any::<u8>(), 1..12)).prop_map(|(at, bytes)| Change::Insert(at, bytes)),
        1 => (at(), 1..40usize).prop_map(|(at, length)| Change::Remove(at, length)),
        1 => at().prop_map(Change::Cut),
    ]
}

fn apply(bytes: &mut Vec<u8>, change: &Change) {
    let length = bytes.len();
    match change {
        _ if length == 0 => {}
        Change::Set(at, byte) => bytes[at % length] = *byte,
        Change::Insert(at, new) => drop(bytes.splice(at % length..at % length, new.iter().copied())),
        Change::Remove(at, many) => drop(bytes.drain(at % length..(at % length + many).min(length))),
        Change::Cut(at) => bytes.truncate(at % length),
    }
}

/// One test: the allocator counts for all threads.
#[test]
fn decoders_survive_any_bytes() {
    let seeds = seeds::all();
    for (name, target) in targets::ALL {
        let seeds = &seeds[name];
        assert!(!seeds.is_empty(), "{name} has no seeds");
        seeds.iter().for_each(|seed| target(seed));
        let rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
        let config = Config { cases: CASES, failure_persistence: None, ..Config::default() };
        let input = (any::<usize>(), prop::collection::vec(change(), 1..6), any::<bool>());
        let run = TestRunner::new_with_rng(config, rng).run(&input, |(seed, changes, random)| {
            let mut bytes = seeds[seed % seeds.len()].clone();
            bytes.truncate(64 << 10);
            changes.iter().for_each(|change| apply(&mut bytes, change));
            if random && seed % 8 == 0 {
                // No trace of the seed but its length.
                bytes.iter_mut().enumerate().for_each(|(i, byte)| *byte = (i.wrapping_mul(seed) >> 3) as u8);
            }
            let peak = sys::peak(|| target(&bytes));
            prop_assert!(peak < MOST, "{} bytes are allocated for {} of input", peak, bytes.len());
            Ok(())
        });
        run.unwrap_or_else(|error| panic!("{name}: {error}"));
    }
}

/// Writes the seeds where scripts/fuzz asks for them.
#[test]
#[ignore = "writes files: run by scripts/fuzz"]
fn write_seeds() {
    let corpus = std::path::PathBuf::from(std::env::var_os("KARAPACE_CORPUS").expect("KARAPACE_CORPUS"));
    for (name, seeds) in seeds::all() {
        std::fs::create_dir_all(corpus.join(name)).unwrap();
        for (i, seed) in seeds.iter().enumerate() {
            std::fs::write(corpus.join(name).join(format!("seed-{i}")), seed).unwrap();
        }
    }
}
