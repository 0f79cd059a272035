mod hostile;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::thread::JoinHandle;

use super::*;
use crate::report::Silent;

#[test]
fn forms() {
    let base = Path::new("/m");
    let local = |p: &str| Some(Image::Local(PathBuf::from(p)));
    let named = |n: &str| Some(Image::Named(n.to_owned()));
    let remote = |url: &str, sha256: Option<String>| Some(Image::Remote { url: url.to_owned(), sha256 });
    let digest = "0123456789abcdef".repeat(4);
    let table = [
        ("/a/rootfs", local("/a/rootfs")),
        ("./rootfs", local("/m/./rootfs")),
        ("../x", local("/m/../x")),
        ("rootfs.tar.zst", local("/m/rootfs.tar.zst")),
        ("dir/rootfs.tar", local("/m/dir/rootfs.tar")),
        ("file:///a/b%20c", local("/a/b c")),
        ("https://h/x.tar", remote("https://h/x.tar", None)),
        ("http://h/x", remote("http://h/x", None)),
        (&format!("http://h/x#sha256={}", digest.to_uppercase()), remote("http://h/x", Some(digest.clone()))),
        ("http://h/x#sha256=12", None),
        ("http://h/x#part", None),
        ("debian/12", named("debian/12")),
        ("rolling", named("rolling")),
        ("a dir/x", None),
        ("oci://docker.io/library/debian:12", None),
        ("ftp://h/x.tar", None),
        ("file://host/x", None),
        ("file:///a%2", None),
    ];
    for (text, expected) in table {
        assert_eq!(Image::parse(text, base).ok(), expected, "{text}");
    }
}

/// A server that sends each answer in turn. Returns its address, and the requests' heads in lower case.
fn serve(answers: Vec<String>) -> (String, JoinHandle<Vec<String>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/image.tar", listener.local_addr().unwrap());
    let server = std::thread::spawn(move || {
        let mut heads = Vec::new();
        for answer in answers {
            let (mut stream, _) = listener.accept().unwrap();
            heads.push(head(&stream));
            stream.write_all(answer.as_bytes()).unwrap();
        }
        heads
    });
    (url, server)
}

/// A request's head, in lower case.
fn head(stream: &TcpStream) -> String {
    let mut head = String::new();
    for line in BufReader::new(stream.try_clone().unwrap()).lines() {
        let line = line.unwrap();
        if line.is_empty() {
            break;
        }
        head.push_str(&line.to_lowercase());
        head.push('\n');
    }
    head
}

/// A response with a body; `length` is the announced length, which may exceed the body.
fn answer(status: &str, headers: &str, length: usize, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\n{headers}Content-Length: {length}\r\nConnection: close\r\n\r\n{body}")
}

fn sha256(text: &str) -> String {
    use sha2::{Digest, Sha256};
    Sha256::digest(text.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn fetch(url: &str, cache: &Path) -> Result<Fetched, ImageError> {
    Image::parse(url, Path::new("/")).unwrap().fetch(cache, false, &Silent)
}

fn fetch_offline(url: &str, cache: &Path) -> Result<Fetched, ImageError> {
    Image::parse(url, Path::new("/")).unwrap().fetch(cache, true, &Silent)
}

#[test]
fn downloads_once_and_revalidates() {
    let unchanged = "HTTP/1.1 304 Not Modified\r\nConnection: close\r\n\r\n";
    let (url, server) = serve(vec![
        answer("200 OK", "ETag: \"v1\"\r\n", 5, "hello"),
        unchanged.into(),
        answer("500 No", "", 0, ""),
    ]);
    let cache = tempfile::tempdir().unwrap();
    assert!(matches!(fetch_offline(&url, cache.path()), Err(ImageError::Offline { .. })));
    let fetched = fetch(&url, cache.path()).unwrap();
    assert_eq!(fs::read(&fetched.path).unwrap(), b"hello");
    assert_eq!(fetched.origin, Some(Origin { url: url.clone(), sha256: sha256("hello") }));
    assert_eq!(fetch(&url, cache.path()).unwrap(), fetched);
    let error = fetch(&url, cache.path()).unwrap_err().to_string();
    assert!(error.contains("500") && error.contains("--offline"), "{error}");
    assert_eq!(fetch_offline(&url, cache.path()).unwrap(), fetched);
    let heads = server.join().unwrap();
    assert!(!heads[0].contains("if-none-match") && heads[1].contains("if-none-match: \"v1\""), "{heads:?}");
}

#[test]
fn an_interrupted_download_resumes_where_it_ended() {
    let (url, server) = serve(vec![
        answer("200 OK", "ETag: \"v1\"\r\n", 10, "hello"),
        answer("206 Partial Content", "ETag: \"v1\"\r\nContent-Range: bytes 5-9/10\r\n", 5, "world"),
    ]);
    let cache = tempfile::tempdir().unwrap();
    assert_eq!(fs::read(fetch(&url, cache.path()).unwrap().path).unwrap(), b"helloworld");
    let heads = server.join().unwrap();
    assert!(heads[1].contains("range: bytes=5-") && heads[1].contains("if-range: \"v1\""), "{heads:?}");
}

#[test]
fn a_file_that_changed_meanwhile_is_taken_from_its_beginning() {
    let (url, server) = serve(vec![
        answer("200 OK", "ETag: \"v1\"\r\n", 10, "hello"),
        answer("200 OK", "ETag: \"v2\"\r\n", 6, "second"),
    ]);
    let cache = tempfile::tempdir().unwrap();
    assert_eq!(fs::read(fetch(&url, cache.path()).unwrap().path).unwrap(), b"second");
    server.join().unwrap();
}

#[test]
fn a_download_without_a_version_is_not_resumed() {
    let (url, server) =
        serve(vec![answer("200 OK", "", 10, "hello"), answer("200 OK", "", 10, "helloworld")]);
    let cache = tempfile::tempdir().unwrap();
    assert_eq!(fs::read(fetch(&url, cache.path()).unwrap().path).unwrap(), b"helloworld");
    assert!(!server.join().unwrap()[1].contains("range:"));
}

#[test]
fn a_range_that_was_not_asked_for_is_not_taken() {
    let (url, server) = serve(vec![
        answer("200 OK", "ETag: \"v1\"\r\n", 10, "hello"),
        answer("206 Partial Content", "Content-Range: bytes 4-9/10\r\n", 6, "oworld"),
        answer("200 OK", "ETag: \"v1\"\r\n", 10, "helloworld"),
    ]);
    let cache = tempfile::tempdir().unwrap();
    assert_eq!(fs::read(fetch(&url, cache.path()).unwrap().path).unwrap(), b"helloworld");
    server.join().unwrap();
}

#[test]
fn an_unfinished_download_is_not_used_and_resumed_later() {
    let begin = answer("200 OK", "ETag: \"v1\"\r\n", 9, "hello");
    let nothing = answer("206 Partial Content", "Content-Range: bytes 5-8/9\r\n", 4, "");
    let (url, server) = serve(vec![
        begin,
        nothing.clone(),
        nothing.clone(),
        nothing.clone(),
        nothing,
        answer("206 Partial Content", "Content-Range: bytes 5-8/9\r\n", 4, "-you"),
    ]);
    let cache = tempfile::tempdir().unwrap();
    let error = fetch(&url, cache.path()).unwrap_err().to_string();
    assert!(error.contains("5 bytes are kept"), "{error}");
    assert!(matches!(fetch_offline(&url, cache.path()), Err(ImageError::Offline { .. })));
    assert_eq!(fs::read(fetch(&url, cache.path()).unwrap().path).unwrap(), b"hello-you");
    server.join().unwrap();
}

#[test]
fn a_pinned_address_gives_these_bytes_or_none() {
    let (url, server) =
        serve(vec![answer("200 OK", "", 5, "other"), answer("200 OK", "ETag: \"v1\"\r\n", 5, "right")]);
    let cache = tempfile::tempdir().unwrap();
    let pinned = format!("{url}#sha256={}", sha256("right"));
    let error = fetch(&pinned, cache.path()).unwrap_err();
    assert!(matches!(&error, ImageError::Checksum { found, .. } if *found == sha256("other")), "{error}");
    assert!(matches!(fetch_offline(&pinned, cache.path()), Err(ImageError::Offline { .. })));
    fetch(&pinned, cache.path()).unwrap();
    // The server sends no third answer: the cached file has the pinned digest.
    assert_eq!(fs::read(fetch(&pinned, cache.path()).unwrap().path).unwrap(), b"right");
    assert!(matches!(
        fetch_offline(&format!("{url}#sha256={}", sha256("x")), cache.path()),
        Err(ImageError::Offline { .. })
    ));
    server.join().unwrap();
}

#[test]
fn a_damaged_archive_in_the_cache_is_not_used() {
    let (url, server) = serve(vec![
        answer("200 OK", "ETag: \"v1\"\r\n", 5, "hello"),
        answer("200 OK", "ETag: \"v1\"\r\n", 5, "hello"),
    ]);
    let cache = tempfile::tempdir().unwrap();
    let path = fetch(&url, cache.path()).unwrap().path;
    fs::write(&path, "jello").unwrap();
    assert!(matches!(fetch_offline(&url, cache.path()), Err(ImageError::Offline { .. })));
    assert_eq!(fs::read(fetch(&url, cache.path()).unwrap().path).unwrap(), b"hello");
    assert!(!server.join().unwrap()[1].contains("if-none-match"));
}
