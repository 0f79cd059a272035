//! Some ACLs as attribute values (linux/posix_acl_xattr.h).

/// Attributes of the two ACLs.
pub const ACCESS: &str = "system.posix_acl_access";
pub const DEFAULT: &str = "system.posix_acl_default";

const USER_OBJ: u16 = 0x01;
const USER: u16 = 0x02;
const GROUP_OBJ: u16 = 0x04;
const GROUP: u16 = 0x08;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;

/// An attribute and a value for it; the last value of each attribute is not a valid ACL.
pub fn variant(i: u8) -> (&'static str, Vec<u8>) {
    let name = if i.is_multiple_of(2) { ACCESS } else { DEFAULT };
    let none = u32::MAX;
    let entries: &[(u16, u16, u32)] = match i / 2 {
        0 => &[(USER_OBJ, 7, none), (USER, 6, 1000), (GROUP_OBJ, 5, none), (MASK, 7, none), (OTHER, 1, none)],
        1 => &[(USER_OBJ, 6, none), (GROUP_OBJ, 4, none), (OTHER, 0, none)],
        2 => &[
            (USER_OBJ, 7, none),
            (USER, 0, 1001),
            (GROUP_OBJ, 7, none),
            (GROUP, 6, 1000),
            (MASK, 6, none),
            (OTHER, 7, none),
        ],
        _ => &[(USER_OBJ, 7, none), (USER, 7, 1000), (OTHER, 7, none)],
    };
    let mut value = 2u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        value.extend_from_slice(&tag.to_le_bytes());
        value.extend_from_slice(&permissions.to_le_bytes());
        value.extend_from_slice(&id.to_le_bytes());
    }
    (name, value)
}
