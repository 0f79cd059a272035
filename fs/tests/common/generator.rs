//! Parts shared by random tests: colliding names, offsets at boundaries, recognisable bytes, and a printed
//! seed.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{SystemTime, UNIX_EPOCH};

use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestError, TestRng, TestRunner};

/// A path of up to three components, from few names, so that paths collide.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct P(pub Vec<u8>);

impl P {
    /// The names of the components.
    pub fn names(&self) -> Vec<Vec<u8>> {
        self.0.iter().map(|i| name(*i)).collect()
    }
}

/// A random path; shorter ones are more likely.
pub fn path() -> impl Strategy<Value = P> {
    let part = || prop_oneof![5 => Just(0u8), 4 => Just(1u8), 2 => Just(2u8), 1 => Just(3u8)];
    prop_oneof![
        4 => part().prop_map(|a| vec![a]),
        6 => (part(), part()).prop_map(|(a, b)| vec![a, b]),
        2 => (part(), part(), part()).prop_map(|(a, b, c)| vec![a, b, c]),
    ]
    .prop_map(P)
}

/// A random offset or size: at block boundaries, and around the size from which files are changed in blocks.
pub fn offset() -> impl Strategy<Value = u32> {
    prop_oneof![
        0u32..5000,
        60_000u32..70_000,
        1_000_000u32..1_200_000,
        Just(0),
        Just(65_536),
        Just(1_048_576),
        0u32..3_000_000
    ]
}

/// The name of a component.
pub fn name(i: u8) -> Vec<u8> {
    [&b"a"[..], b"b", b"\xff\xfe", b".wh.a"][usize::from(i % 4)].to_vec()
}

/// Bytes that are not all equal, so that blocks differ; seed 0 gives zeros.
pub fn bytes(n: u32, seed: u8) -> Vec<u8> {
    if seed == 0 {
        return vec![0; n as usize];
    }
    (0..n).map(|i| (i as u8).wrapping_mul(31).wrapping_add((i >> 13) as u8).wrapping_add(seed)).collect()
}

/// Runs sequences of `length` operations. `KARAPACE_MODEL_CASES` sets how many, by default `cases`; the seed
/// is printed, and `KARAPACE_MODEL_SEED` repeats a run. `run` returns the number of operations that
/// succeeded. If it fails or panics, the shortest sequence that still fails is shown.
pub fn run_random<T: std::fmt::Debug + Clone>(
    what: &str,
    cases: u32,
    length: usize,
    operation: impl Strategy<Value = T>,
    run: impl Fn(&[T]) -> Result<u64, String>,
) {
    let cases =
        std::env::var("KARAPACE_MODEL_CASES").map_or(cases, |v| v.parse().expect("a number of cases"));
    let seed: u64 = std::env::var("KARAPACE_MODEL_SEED").map_or_else(
        |_| SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_nanos() as u64,
        |v| v.parse().expect("a seed"),
    );
    println!("{what}: KARAPACE_MODEL_SEED={seed} KARAPACE_MODEL_CASES={cases}, {length} operations each");
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    // Sequences are shortened below instead: by halves first, which needs far fewer runs.
    let config = Config { cases, failure_persistence: None, max_shrink_iters: 0, ..Config::default() };
    let mut runner = TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &bytes));
    let (operations, succeeded) = (Cell::new(0), Cell::new(0));
    let run = |ops: &[T]| {
        catch_unwind(AssertUnwindSafe(|| run(ops))).unwrap_or_else(|panic| {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            Err(text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("a panic").to_owned())
        })
    };
    let ran = runner.run(&prop::collection::vec(operation, length), |ops| {
        let done = run(&ops).map_err(TestCaseError::fail)?;
        operations.set(operations.get() + ops.len() as u64);
        succeeded.set(succeeded.get() + done);
        Ok(())
    });
    match ran {
        Ok(()) => {}
        Err(TestError::Fail(why, ops)) => {
            println!("{what}: seed {seed}: {why}; looking for a shorter sequence");
            let (why, ops) = shortest(ops, why.to_string(), run);
            panic!("seed {seed}: {why}\nafter {ops:#?}");
        }
        Err(e) => panic!("seed {seed}: {e}"),
    }
    println!("{what}: {} operations, {} of them succeeded", operations.get(), succeeded.get());
}

/// Removes operations that a failure does not need: halves, quarters, single ones.
fn shortest<T: Clone>(
    mut ops: Vec<T>,
    mut why: String,
    run: impl Fn(&[T]) -> Result<u64, String>,
) -> (String, Vec<T>) {
    let mut chunk = ops.len().div_ceil(2);
    while chunk > 0 {
        let (mut at, before) = (0, ops.len());
        while at < ops.len() {
            let mut fewer = ops.clone();
            fewer.drain(at..(at + chunk).min(ops.len()));
            match run(&fewer) {
                Err(still) => (ops, why) = (fewer, still),
                Ok(_) => at += chunk,
            }
        }
        // Repeats single operations as long as it helps: a later one may have needed an earlier one.
        if chunk > 1 {
            chunk = chunk.div_ceil(2);
        } else if ops.len() == before {
            chunk = 0;
        }
    }
    (why, ops)
}
