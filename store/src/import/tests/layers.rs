//! Layers whose whiteouts and hard links refer to entries that the same layer has or hides. umoci 0.4.7 and
//! podman 4.3.1 were tested with these (tests/e2e/suites/import.sh repeats some of them with umoci).

use super::*;

/// The lowest layer of every image here.
fn base() -> Vec<u8> {
    archive(&[
        (b"etc/", b'5', b"", b""),
        (b"etc/x", b'0', b"", b"x"),
        (b"a/", b'5', b"", b""),
        (b"a/a", b'0', b"", b"aa"),
        (b"b/", b'5', b"", b""),
        (b"b/a", b'0', b"", b"ba"),
        (b"b/k", b'0', b"", b"bk"),
        (b"l", b'2', b"b", b""),
        (b"dangling", b'2', b"nowhere", b""),
    ])
}

/// The files below the root of an image with this layer over the base, except those in /etc.
fn with(place: &Place, layer: &[Raw<'_>]) -> Result<String> {
    let imported = place.layered(&[base(), archive(layer)])?;
    let list = place.list(&imported.root);
    assert!(list.contains_key(&b"/etc/x"[..]) || layer.iter().any(|m| m.2.ends_with(b"etc")));
    let all = list.iter().filter(|(path, _)| path.len() > 1 && !path.starts_with(b"/etc"));
    let shown = all.map(|(path, record)| {
        let path = String::from_utf8_lossy(&path[1..]);
        match &record.body {
            Body::Directory { .. } => format!("{path}/"),
            Body::Symlink(target) => format!("{path}->{}", String::from_utf8_lossy(target)),
            _ => format!("{path}={}", String::from_utf8_lossy(&place.content(record))),
        }
    });
    Ok(shown.collect::<Vec<_>>().join(" "))
}

const F: u8 = b'0';
const S: u8 = b'2';
const H: u8 = b'1';

#[test]
fn a_whiteout_below_a_symbolic_link_of_its_layer_goes_where_that_leads() {
    let place = Place::new();
    let cases: [(&[Raw<'_>], &str); 12] = [
        (&[(b"a", S, b"b", b""), (b"a/.wh.a", F, b"", b"")], "a->b b/ b/k=bk dangling->nowhere l->b"),
        (&[(b"a", S, b"b", b""), (b"a/.wh..wh..opq", F, b"", b"")], "a->b b/ dangling->nowhere l->b"),
        // Before the link is read, it refers into the directory that the link replaces.
        (&[(b"a/.wh.a", F, b"", b""), (b"a", S, b"b", b"")], "a->b b/ b/a=ba b/k=bk dangling->nowhere l->b"),
        (
            &[(b"a/.wh..wh..opq", F, b"", b""), (b"a", S, b"b", b"")],
            "a->b b/ b/a=ba b/k=bk dangling->nowhere l->b",
        ),
        (
            &[(b"n", S, b"./b/", b""), (b"n/.wh.a", F, b"", b"")],
            "a/ a/a=aa b/ b/k=bk dangling->nowhere l->b n->./b/",
        ),
        // Through a link of this layer and one of the layer below.
        (
            &[(b"n", S, b"l", b""), (b"n/.wh.a", F, b"", b"")],
            "a/ a/a=aa b/ b/k=bk dangling->nowhere l->b n->l",
        ),
        // A link to nothing, or not to a directory: it hides nothing.
        (
            &[(b"n", S, b"nowhere", b""), (b"n/.wh.a", F, b"", b"")],
            "a/ a/a=aa b/ b/a=ba b/k=bk dangling->nowhere l->b n->nowhere",
        ),
        (
            &[(b"n", S, b"b/a", b""), (b"n/.wh.a", F, b"", b"")],
            "a/ a/a=aa b/ b/a=ba b/k=bk dangling->nowhere l->b n->b/a",
        ),
        (
            &[(b"n", S, b"n", b""), (b"n/.wh..wh..opq", F, b"", b"")],
            "a/ a/a=aa b/ b/a=ba b/k=bk dangling->nowhere l->b n->n",
        ),
        (&[(b"dangling/.wh.a", F, b"", b"")], "a/ a/a=aa b/ b/a=ba b/k=bk dangling->nowhere l->b"),
        (&[(b"l/.wh.a", F, b"", b"")], "a/ a/a=aa b/ b/k=bk dangling->nowhere l->b"),
        // The layer's own entries stay.
        (
            &[(b"n", S, b"b", b""), (b"b/new", F, b"", b"n"), (b"n/.wh..wh..opq", F, b"", b"")],
            "a/ a/a=aa b/ b/new=n dangling->nowhere l->b n->b",
        ),
    ];
    for (layer, expected) in cases {
        assert_eq!(with(&place, layer).unwrap(), expected, "{:?}", String::from_utf8_lossy(layer[0].0));
    }
}

/// Absolute targets and `..` never lead above the image's root.
#[test]
fn a_whiteout_below_a_link_never_leaves_the_image() {
    let place = Place::new();
    for target in [&b"/etc"[..], b"../../../../../../etc", b"b/../../../etc"] {
        let layer: [Raw<'_>; 2] = [(b"n", S, target, b""), (b"n/.wh.x", F, b"", b"")];
        let imported = place.layered(&[base(), archive(&layer)]).unwrap();
        let list = place.list(&imported.root);
        assert!(list.contains_key(&b"/etc"[..]) && !list.contains_key(&b"/etc/x"[..]));
    }
}

#[test]
fn an_entry_below_a_symbolic_link_of_its_layer_goes_where_that_leads() {
    let place = Place::new();
    let layer: [Raw<'_>; 4] = [
        (b"n", S, b"/l", b""),
        (b"n/new", F, b"", b"n"),
        (b"h", H, b"n/new", b""),
        (b"n/d/", b'5', b"", b""),
    ];
    assert_eq!(
        with(&place, &layer).unwrap(),
        "a/ a/a=aa b/ b/a=ba b/d/ b/k=bk b/new=n dangling->nowhere h=n l->b n->/l"
    );
    // A link that this layer has already hidden is not followed: the name becomes a directory.
    let layer: [Raw<'_>; 2] = [(b".wh.l", F, b"", b""), (b"l/new", F, b"", b"n")];
    assert_eq!(with(&place, &layer).unwrap(), "a/ a/a=aa b/ b/a=ba b/k=bk dangling->nowhere l/ l/new=n");
    for layer in [
        [(&b"n"[..], S, &b"nowhere"[..], &b""[..]), (b"n/new", F, b"", b"n")],
        [(b"n", S, b"n", b""), (b"n/new", F, b"", b"n")],
        [(b"n", S, b"b/a", b""), (b"n/new", F, b"", b"n")],
        [(b"n", F, b"", b"file"), (b"n/new", F, b"", b"n")],
    ] {
        let error = with(&place, &layer).unwrap_err().to_string();
        assert!(error.contains("n/new"), "{error}");
    }
}

#[test]
fn a_hard_link_to_what_its_layer_takes_away_keeps_the_content() {
    let place = Place::new();
    let gone = "a/ a/a=aa b/ b/k=bk dangling->nowhere h=ba l->b";
    let (link, whiteout): (Raw<'_>, Raw<'_>) = ((b"h", H, b"b/a", b""), (b"b/.wh.a", F, b"", b""));
    assert_eq!(with(&place, &[link, whiteout]).unwrap(), gone);
    // Whiteouts apply to the layers below, wherever they stand.
    assert_eq!(with(&place, &[whiteout, link]).unwrap(), gone);
    assert_eq!(
        with(&place, &[link, (b".wh.b", F, b"", b"")]).unwrap(),
        "a/ a/a=aa dangling->nowhere h=ba l->b"
    );
    assert_eq!(
        with(&place, &[link, (b"b/.wh..wh..opq", F, b"", b"")]).unwrap(),
        "a/ a/a=aa b/ dangling->nowhere h=ba l->b"
    );
    // Through a link of the layer below, and through another hard link.
    let layer: [Raw<'_>; 3] = [(b"h", H, b"l/a", b""), (b"i", H, b"h", b""), (b"b/.wh.a", F, b"", b"")];
    assert_eq!(with(&place, &layer).unwrap(), "a/ a/a=aa b/ b/k=bk dangling->nowhere h=ba i=ba l->b");
    // Replacing a file hides it too: the hard link refers to the previous one.
    let layer: [Raw<'_>; 2] = [(b"h", H, b"b/a", b""), (b"b/a", F, b"", b"new")];
    assert_eq!(with(&place, &layer).unwrap(), "a/ a/a=aa b/ b/a=new b/k=bk dangling->nowhere h=ba l->b");
    // The layer's own entries are not hidden.
    let layer: [Raw<'_>; 3] = [(b"t", F, b"", b"t"), (b"h", H, b"t", b""), (b".wh.t", F, b"", b"")];
    assert_eq!(with(&place, &layer).unwrap(), "a/ a/a=aa b/ b/a=ba b/k=bk dangling->nowhere h=t l->b t=t");
    for target in [&b"b"[..], b"nowhere", b"../x", b"h"] {
        let error = with(&place, &[(b"h", H, target, b"")]).unwrap_err().to_string();
        assert!(error.contains("\"h\""), "{error}");
    }
}

/// umoci, and containers/storage as used by skopeo, only consider the name.
#[test]
fn a_whiteout_may_be_a_directory() {
    let place = Place::new();
    let rest = "dangling->nowhere l->b";
    let one = with(&place, &[(b"b/.wh.a/", b'5', b"", b"")]).unwrap();
    assert_eq!(one, format!("a/ a/a=aa b/ b/k=bk {rest}"));
    let all = with(&place, &[(b"b/.wh..wh..opq/", b'5', b"", b"")]).unwrap();
    assert_eq!(all, format!("a/ a/a=aa b/ {rest}"));
}
