//! A client of the API: one request at a time, over the switch's socket.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use ringswitch::api::Problem;
use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;
use tokio::net::UnixStream;
use tokio::runtime::Runtime;

use crate::Failure;

/// How long the switch may take for an answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// The longest answer: a full MAC table, and then some.
const MAX_ANSWER: usize = 64 << 20;

/// Why there is no answer.
#[derive(Debug, Error)]
pub enum ClientError {
    #[error(
        "no switch answers at {}: is it running, with this path as `socket` in [api] of its \
         configuration, or as --api-socket?", .0.display()
    )]
    Nobody(PathBuf, #[source] io::Error),
    #[error(
        "not permitted to use {}: be root, or the user that the switch runs as", .0.display()
    )]
    NotPermitted(PathBuf, #[source] io::Error),
    #[error("the switch doesn't answer; see its log")]
    Silent,
    #[error("{0}")]
    Refused(String),
    #[error("the switch has ended, or another process took over: ask again")]
    Ended,
    #[error("the switch's answer can't be understood; is it another version?")]
    Answer(#[source] anyhow::Error),
    #[error("cannot set up a client")]
    Setup(#[source] io::Error),
}

/// A client.
#[derive(Debug)]
pub struct Client {
    socket: PathBuf,
    runtime: Runtime,
}

impl Client {
    /// A client of the switch whose API is at `socket`.
    pub fn new(socket: &Path) -> Result<Self, ClientError> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(ClientError::Setup)?;
        Ok(Self { socket: socket.to_owned(), runtime })
    }

    /// What is at `path`, below `/v1`.
    pub fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.answer(Method::GET, path, Bytes::new())
    }

    /// What is answered to `body` at `path`, below `/v1`.
    pub fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, ClientError> {
        let body = serde_json::to_vec(body).map_err(|error| ClientError::Answer(error.into()))?;
        self.answer(Method::POST, path, body.into())
    }

    fn answer<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<T, ClientError> {
        let answer = async {
            let asked = async { whole(self.request(method, path, body).await?).await };
            let asked = tokio::time::timeout(PATIENCE, asked);
            asked.await.map_err(|_| ClientError::Silent)?
        };
        parse(&self.runtime.block_on(answer)?)
    }

    /// Hands what is at `path`, below `/v1`, to `f`, piece by piece, until `over`.
    ///
    /// # Errors
    ///
    /// Those of `f`; the switch ended it.
    pub fn stream(
        &self,
        path: &str,
        over: impl Future<Output = ()>,
        mut f: impl FnMut(&[u8]) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let pieces = async {
            let mut body = self.request(Method::GET, path, Bytes::new()).await?.into_body();
            while let Some(frame) = body.frame().await {
                let frame = frame.map_err(|_| ClientError::Ended)?;
                frame.data_ref().map_or(Ok(()), |bytes| f(bytes))?;
            }
            Err(ClientError::Ended.into())
        };
        self.runtime.block_on(async {
            tokio::select! {
                done = pieces => done,
                () = over => Ok(()),
            }
        })
    }

    /// The beginning of an answer that isn't a refusal.
    async fn request(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<Response<Incoming>, ClientError> {
        let stream = UnixStream::connect(&self.socket).await.map_err(|error| {
            let socket = self.socket.clone();
            match error.kind() {
                io::ErrorKind::PermissionDenied => ClientError::NotPermitted(socket, error),
                _ => ClientError::Nobody(socket, error),
            }
        })?;
        let failed = |error: hyper::Error| ClientError::Answer(error.into());
        let io = TokioIo::new(stream);
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(io).await.map_err(failed)?;
        tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(format!("/v1{path}"))
            .header("host", "ringswitch")
            .header("content-type", "application/json")
            .body(Full::new(body))
            .map_err(|error| ClientError::Answer(error.into()))?;
        let answer = sender.send_request(request).await.map_err(failed)?;
        if answer.status() == StatusCode::OK {
            return Ok(answer);
        }
        let problem: Problem = parse(&whole(answer).await?)?;
        Err(ClientError::Refused(problem.error))
    }
}

/// All of an answer.
async fn whole(answer: Response<Incoming>) -> Result<Bytes, ClientError> {
    let body = Limited::new(answer.into_body(), MAX_ANSWER).collect().await;
    Ok(body.map_err(|error| ClientError::Answer(anyhow::anyhow!(error)))?.to_bytes())
}

fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, ClientError> {
    serde_json::from_slice(body).map_err(|error| ClientError::Answer(error.into()))
}

/// A segment of a path, or a value of a query.
pub fn escaped(name: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
    name.bytes()
        .map(|byte| match plain(byte) {
            true => char::from(byte).to_string(),
            false => format!("%{byte:02X}"),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_one_segment_of_a_path() {
        assert_eq!(escaped("vm-1_a.b"), "vm-1_a.b");
        assert_eq!(escaped("../x?y"), "..%2Fx%3Fy");
    }
}
