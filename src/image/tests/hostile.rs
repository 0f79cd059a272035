//! Servers that send too much, something else, or too slowly, or that redirect elsewhere.

use std::io::{ErrorKind, Read};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use super::super::download::Answer;
use super::*;

/// What a server does with a connection after it has read the request's head. Returns how many bytes it could
/// send.
type Act = Box<dyn FnOnce(&mut TcpStream) -> u64 + Send>;

/// A server that handles each connection in turn. Returns its address, and the requests' heads in lower case
/// with the results of the acts.
fn act(acts: Vec<Act>) -> (String, JoinHandle<Vec<(String, u64)>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/image.tar", listener.local_addr().unwrap());
    let server = std::thread::spawn(move || {
        let serve = |act: Act| {
            let (mut stream, _) = listener.accept().unwrap();
            let head = super::head(&stream);
            (head, act(&mut stream))
        };
        acts.into_iter().map(serve).collect()
    });
    (url, server)
}

fn say(answer: String) -> Act {
    Box::new(move |stream| {
        stream.write_all(answer.as_bytes()).unwrap();
        answer.len() as u64
    })
}

/// Sends `head`, then `piece` again and again with `pause` in between, while the client accepts it.
fn go_on(head: &str, piece: Vec<u8>, pause: Duration) -> Act {
    let head = head.to_owned();
    Box::new(move |stream| {
        stream.write_all(head.as_bytes()).unwrap();
        let mut sent = 0;
        while stream.write_all(&piece).is_ok() {
            sent += piece.len() as u64;
            std::thread::sleep(pause);
        }
        sent
    })
}

/// Sends `head` and then nothing, until the client disconnects.
fn stall(head: &str) -> Act {
    let head = head.to_owned();
    Box::new(move |stream| {
        stream.write_all(head.as_bytes()).unwrap();
        match stream.read(&mut [0]) {
            Ok(read) => read as u64,
            Err(e) if e.kind() == ErrorKind::ConnectionReset => 0,
            Err(e) => panic!("{e}"),
        }
    })
}

fn redirect(to: &str) -> Act {
    say(answer("302 Found", &format!("Location: {to}\r\n"), 0, ""))
}

/// Short time limits, so that the tests are fast.
const BRIEF: Patience = Patience {
    answer: Duration::from_secs(5),
    silence: Duration::from_secs(1),
    period: Duration::from_secs(1),
    least: 1000,
};

/// Downloads a file with a limit of ten bytes.
fn ten(url: &str, cache: &Path) -> Result<Fetched, ImageError> {
    let limit = Limit { bytes: 10, why: "as the test says" };
    let source = Source { url: url.to_owned(), sha256: None, size: None, limit };
    Cached::open(cache, url)?.fetch(&source, &Http::new(&Silent, BRIEF))
}

/// The files below a directory, with their sizes.
fn files(dir: &Path) -> Vec<(String, u64)> {
    let mut all = Vec::new();
    for entry in fs::read_dir(dir).unwrap().map(Result::unwrap) {
        let found = entry.metadata().unwrap();
        if found.is_dir() {
            all.extend(files(&entry.path()));
        } else {
            all.push((entry.file_name().into_string().unwrap(), found.len()));
        }
    }
    all
}

const CHUNKED: &str = "HTTP/1.1 200 OK\r\nETag: \"v\"\r\nTransfer-Encoding: chunked\r\n\r\n";
const UNBOUNDED: &str = "HTTP/1.1 200 OK\r\nETag: \"v\"\r\nConnection: close\r\n\r\n";

#[test]
fn no_more_is_taken_than_is_wanted_whatever_the_server_says() {
    let chunk = [&b"10000\r\n"[..], &[b'x'; 65536], b"\r\n"].concat();
    let begun = || say(answer("200 OK", "ETag: \"v\"\r\n", 10, "12345"));
    let rest = "ETag: \"v\"\r\nContent-Range: bytes 5-10/11\r\n";
    let table: [(&str, Vec<Act>); 5] = [
        ("its length", vec![go_on(&answer("200 OK", "", 11, ""), vec![b'x'; 11], Duration::ZERO)]),
        ("a huge length", vec![say(answer("200 OK", "", usize::MAX >> 1, "12345"))]),
        ("chunks without end", vec![go_on(CHUNKED, chunk, Duration::ZERO)]),
        ("no length and no end", vec![go_on(UNBOUNDED, vec![b'x'; 65536], Duration::ZERO)]),
        ("a rest that is too long", vec![begun(), say(answer("206 Partial Content", rest, 6, "67890x"))]),
    ];
    for (what, acts) in table {
        let (url, server) = act(acts);
        let cache = tempfile::tempdir().unwrap();
        let error = ten(&url, cache.path()).unwrap_err().to_string();
        assert!(error.contains("more than 10 bytes, as the test says; nothing"), "{what}: {error}");
        assert_eq!(files(cache.path()), [], "{what}");
        let sent = server.join().unwrap().pop().unwrap().1;
        assert!(sent < 32 << 20, "{what}: the server got rid of {sent} bytes");
    }
    let (url, server) = act(vec![say(answer("200 OK", "", 10, "1234567890"))]);
    let cache = tempfile::tempdir().unwrap();
    assert_eq!(fs::read(ten(&url, cache.path()).unwrap().path).unwrap(), b"1234567890");
    server.join().unwrap();
}

#[test]
fn what_was_taken_under_a_larger_limit_goes() {
    let long = || say(answer("200 OK", "ETag: \"v\"\r\n", 11, "12345678901"));
    let (url, server) = act(vec![long(), long()]);
    let cache = tempfile::tempdir().unwrap();
    fetch(&url, cache.path()).unwrap();
    assert_eq!(files(cache.path()).len(), 2);
    ten(&url, cache.path()).unwrap_err();
    assert_eq!(files(cache.path()), []);
    assert!(!server.join().unwrap()[1].0.contains("if-none-match"));
}

#[test]
fn a_list_without_end_is_not_stored() {
    let (url, server) = act(vec![go_on(UNBOUNDED, vec![b' '; 1 << 20], Duration::ZERO)]);
    let server_url = url.trim_end_matches("/image.tar");
    let cache = tempfile::tempdir().unwrap();
    let http = Http::new(&Silent, Patience::default());
    let error = streams::find(server_url, "debian/12", cache.path(), &http).unwrap_err().to_string();
    assert!(error.contains("more than 67108864 bytes"), "{error}");
    assert_eq!(files(cache.path()), []);
    assert!(server.join().unwrap()[0].1 < 200 << 20);
    // An invalid list is not kept either: the server would say that it is current.
    let (url, server) = act(vec![say(answer("200 OK", "ETag: \"v\"\r\n", 3, "bad"))]);
    let server_url = url.trim_end_matches("/image.tar");
    let error = streams::find(server_url, "debian/12", cache.path(), &http).unwrap_err().to_string();
    assert!(error.contains("is not a list of images"), "{error}");
    assert_eq!(files(cache.path()), []);
    server.join().unwrap();
}

#[test]
fn an_image_is_no_longer_than_its_list_says() {
    let arch = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        _ => "arm64",
    };
    let index = r#"{"index": {"i": {"datatype": "image-downloads", "path": "list"}}}"#;
    let item =
        format!(r#"{{"ftype": "root.tar.xz", "path": "x", "sha256": "{}", "size": 5}}"#, sha256("hello"));
    let list = format!(
        r#"{{"products": {{"p": {{"aliases": "a/1", "arch": "{arch}", "versions": {{"1": {{"items": {{"r": {item}}}}}}}}}}}}}"#
    );
    let ok = |text: &str| say(answer("200 OK", "", text.len(), text));
    let (url, server) = act(vec![ok(index), ok(&list), go_on(UNBOUNDED, vec![b'x'; 65536], Duration::ZERO)]);
    let cache = tempfile::tempdir().unwrap();
    let http = Http::new(&Silent, BRIEF);
    let source = streams::find(url.trim_end_matches("/image.tar"), "a/1", cache.path(), &http).unwrap();
    let error = Cached::open(cache.path(), "a").unwrap().fetch(&source, &http).unwrap_err().to_string();
    assert!(error.contains("more than 5 bytes, as its server's list says"), "{error}");
    assert!(files(cache.path()).iter().all(|(name, _)| !name.contains("part")));
    server.join().unwrap();
}

#[test]
fn what_is_not_the_file_itself_is_not_taken() {
    // "hello", compressed with gzip.
    let gzip = b"\x1f\x8b\x08\0\0\0\0\0\0\x03\xcbH\xcd\xc9\xc9\x07\0\x86\xa6\x106\x05\0\0\0";
    for (header, refused) in [
        ("Content-Encoding: gzip", true),
        ("Content-Encoding: br", true),
        ("Content-Encoding: identity\r\nContent-Encoding: zstd", true),
        ("Transfer-Encoding: gzip", true),
        ("Content-Encoding: Identity", false),
        ("Content-Type: application/gzip", false),
    ] {
        let head = format!("HTTP/1.1 200 OK\r\n{header}\r\nConnection: close\r\n");
        let length = if header.starts_with("T") {
            String::new()
        } else {
            format!("Content-Length: {}\r\n", gzip.len())
        };
        let head = format!("{head}{length}\r\n");
        let (url, server) = act(vec![Box::new(move |stream: &mut TcpStream| {
            stream.write_all(&[head.as_bytes(), gzip].concat()).unwrap();
            0
        })]);
        let cache = tempfile::tempdir().unwrap();
        let fetched = fetch(&url, cache.path());
        if refused {
            let error = fetched.unwrap_err().to_string();
            assert!(error.contains("encoded (") && error.contains("nothing of it was kept"), "{error}");
            assert_eq!(files(cache.path()), [], "{header}");
        } else {
            assert_eq!(fs::read(fetched.unwrap().path).unwrap(), gzip, "{header}");
        }
        assert!(server.join().unwrap()[0].0.contains("accept-encoding: identity"));
    }
}

#[test]
fn redirects_are_followed_so_far_and_carry_no_credentials() {
    let (other, there) = act(vec![say(answer("200 OK", "", 5, "hello"))]);
    let (url, here) = act(vec![redirect("/b/../c?d#e"), redirect(&other)]);
    let cache = tempfile::tempdir().unwrap();
    let with_password = url.replace("http://", "http://me:secret@");
    assert_eq!(fs::read(fetch(&with_password, cache.path()).unwrap().path).unwrap(), b"hello");
    let heads = here.join().unwrap();
    assert!(heads.iter().all(|(head, _)| head.contains("authorization: basic")), "{heads:?}");
    assert!(heads[1].0.starts_with("get /c?d http"), "{heads:?}");
    let heads = there.join().unwrap();
    assert!(!heads[0].0.contains("authorization") && heads[0].0.starts_with("get /image.tar"), "{heads:?}");
    // Redirects in a circle, and to unsupported addresses.
    let (url, server) = act((0..11).map(|_| redirect("/image.tar")).collect());
    let error = fetch(&url, cache.path()).unwrap_err().to_string();
    assert!(error.contains("more than 10 redirects"), "{error}");
    server.join().unwrap();
    for (to, words) in [("file:///etc/passwd", "not an http(s) URL"), ("ftp://h/x", "not an http(s) URL")] {
        let (url, server) = act(vec![redirect(to)]);
        let error = fetch(&url, cache.path()).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
        server.join().unwrap();
    }
    // The body of a redirect is not read.
    let endless = "HTTP/1.1 302 Found\r\nLocation: /x\r\nConnection: close\r\n\r\n";
    let (url, server) =
        act(vec![go_on(endless, vec![b'x'; 65536], Duration::ZERO), say(answer("200 OK", "", 5, "hello"))]);
    assert_eq!(fs::read(fetch(&url, cache.path()).unwrap().path).unwrap(), b"hello");
    assert!(server.join().unwrap()[0].1 < 32 << 20);
}

#[test]
fn nobody_is_waited_for_without_end() {
    let in_time = |url: &str, words: &str| {
        let cache = tempfile::tempdir().unwrap();
        let source = Source { url: url.to_owned(), sha256: None, size: None, limit: Limit::IMAGE };
        let start = Instant::now();
        let fetched = Cached::open(cache.path(), url).unwrap().fetch(&source, &Http::new(&Silent, BRIEF));
        let error = fetched.unwrap_err().to_string();
        assert!(error.contains(words), "{words}: {error}");
        assert!(start.elapsed() < Duration::from_secs(60), "{words}: {:?}", start.elapsed());
        files(cache.path())
    };
    // A byte now and then is too slow, and what arrived is kept for a later download.
    let (url, server) = act(vec![go_on(UNBOUNDED, vec![b'x'], Duration::from_millis(20))]);
    let kept = in_time(&url, "too slow");
    assert!(kept.iter().any(|(name, size)| name == "archive.part" && *size > 0), "{kept:?}");
    server.join().unwrap();
    // Nor is it enough if each byte comes over a connection of its own.
    let (url, server) = act((0..40).map(|_| say(answer("200 OK", "", 9, "x"))).collect());
    in_time(&url, "");
    drop(server);
    // Nothing after the head; no head at all; a head that never ends.
    let (url, server) = act(vec![stall(CHUNKED), stall(CHUNKED), stall(CHUNKED), stall(CHUNKED)]);
    in_time(&url, "");
    drop(server);
    let (url, server) = act(vec![stall("")]);
    in_time(&url, "timeout");
    server.join().unwrap();
    let (url, server) = act(vec![go_on("HTTP/1.1 200 OK\r\nX: ", vec![b'x'], Duration::from_millis(20))]);
    in_time(&url, "timeout");
    server.join().unwrap();
    // A chunk whose size never ends.
    let (url, server) = act(vec![go_on(CHUNKED, vec![b'0'; 4096], Duration::from_millis(5))]);
    in_time(&url, "");
    drop(server);
}

#[test]
fn a_download_that_breaks_at_the_same_place_each_time_is_given_up() {
    let broken = || say(answer("200 OK", "", 10, "hello"));
    let (url, server) = act(vec![broken(), broken(), broken(), broken(), broken()]);
    let cache = tempfile::tempdir().unwrap();
    let http = Http::new(&Silent, Patience::default());
    let source = Source { url: url.clone(), sha256: None, size: None, limit: Limit::IMAGE };
    let part = cache.path().join("archive.part");
    let error = match http.download(&source, None, &part) {
        Err(error) => error.to_string(),
        Ok(Answer::Here(_) | Answer::Unchanged) => panic!("it never came whole"),
    };
    assert!(error.contains("5 bytes are kept"), "{error}");
    server.join().unwrap();
}
