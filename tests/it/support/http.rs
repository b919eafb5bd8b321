//! Requests to the API, and their answers.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// The status and the body of the answer to these bytes, when the switch has closed.
pub fn answer(socket: &Path, request: &[u8]) -> (u16, String) {
    let mut stream = UnixStream::connect(socket).expect("an API");
    stream.set_read_timeout(Some(PATIENCE)).expect("a time limit");
    // It may have closed before it has read all.
    let _ = stream.write_all(request);
    let mut got = Vec::new();
    match stream.read_to_end(&mut got) {
        Err(error) if error.kind() != ErrorKind::ConnectionReset => panic!("{error}"),
        _ => (),
    }
    parts(got)
}

/// Status and body.
pub fn parts(answer: Vec<u8>) -> (u16, String) {
    let text = String::from_utf8(answer).expect("text");
    let status = text.split(' ').nth(1).map_or(0, |status| status.parse().expect("a status"));
    let body = text.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    (status, body.to_owned())
}

/// What asks for this path.
pub fn request(path: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").into_bytes()
}

/// The status and the body of what is at this path.
pub fn get(socket: &Path, path: &str) -> (u16, String) {
    answer(socket, &request(path))
}

/// What is at this path, of which there is something.
#[track_caller]
pub fn get_json(socket: &Path, path: &str) -> Value {
    let (status, body) = get(socket, path);
    assert_eq!(status, 200, "{path}: {body}");
    serde_json::from_str(&body).expect("JSON")
}
