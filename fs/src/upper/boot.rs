//! Identifies the kernel boot in which a record was written: data in the page cache outlives the process, but
//! not the boot.

use std::fs;

use karapace_store::fail;

/// The kernel generates a new id at each boot.
const FILE: &str = "/proc/sys/kernel/random/boot_id";

/// The id of one boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Boot(pub [u8; 16]);

impl Boot {
    /// The current boot; `None` if the id cannot be read, as in some containers.
    pub fn this() -> Option<Boot> {
        fail::point("boot.read").and_then(|()| fs::read_to_string(FILE)).ok().and_then(|text| parse(&text))
    }
}

/// The 32 hexadecimal digits of a UUID.
fn parse(text: &str) -> Option<Boot> {
    let digits: String = text.trim().chars().filter(|c| *c != '-').collect();
    let number = u128::from_str_radix(&digits, 16).ok();
    number.filter(|_| digits.len() == 32).map(|number| Boot(number.to_be_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_all_of_its_digits() {
        let id = parse("0f5e2c1a-0000-4abc-8def-0123456789ab\n").unwrap();
        assert_eq!((id.0[0], id.0[15]), (0x0f, 0xab));
        for text in [
            "",
            "-",
            "0f5e2c1a",
            "0f5e2c1a-0000-4abc-8def-0123456789ax",
            "0f5e2c1a-0000-4abc-8def-0123456789abc",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
