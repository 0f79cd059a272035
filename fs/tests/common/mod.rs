//! Code shared by several of the test programs.
#![allow(dead_code, reason = "each program uses a part of it")]

pub mod commit;
pub mod generator;
pub mod reference;
pub mod sys;
