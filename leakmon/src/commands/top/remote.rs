//! A daemon's report over HTTP.
//!
//! In: the URL that a person gave. Out: a [`Report`], read within a time and a size. One connection a report: the next one finds
//! a daemon that was restarted meanwhile.

use crate::{cli::UrlError, export::report::Report};
use anyhow::{Context, bail};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::{Request, StatusCode, Uri, body::Bytes, client::conn::http1, header::HOST};
use hyper_util::rt::TokioIo;
use std::time::Duration;
use tokio::{net::TcpStream, time::timeout};

/// How long a daemon may take: it answers from a snapshot.
const WAIT_MAX: Duration = Duration::from_secs(5);

/// Bytes of a report; one with 10,000 callsites and their stacks has about half of it.
const BYTES_MAX: usize = 64 << 20;

const PATH: &str = "/api/v1/report";

/// Where a daemon is.
#[derive(Debug)]
pub(super) struct Daemon {
    authority: String,
    address: String,
}

impl Daemon {
    /// Understands `http://HOST:PORT`, with or without a slash at its end.
    pub(super) fn at(url: &str) -> Result<Self, UrlError> {
        let error = || UrlError(url.to_owned());
        let uri: Uri = url.parse().map_err(|_| error())?;
        let authority = uri.authority().ok_or_else(error)?;
        let is_plain = uri.scheme_str() == Some("http") && matches!(uri.path(), "" | "/") && uri.query().is_none();
        if !is_plain || authority.as_str().contains('@') {
            return Err(error());
        }
        let port = authority.port_u16().unwrap_or(crate::config::DEFAULT_PORT);
        Ok(Self {
            authority: authority.to_string(),
            address: format!("{}:{port}", authority.host()),
        })
    }

    pub(super) async fn report(&self) -> anyhow::Result<Report> {
        let Ok(report) = timeout(WAIT_MAX, self.fetch()).await else {
            bail!("http://{}: no answer in {} s", self.authority, WAIT_MAX.as_secs());
        };
        report.with_context(|| format!("http://{}", self.authority))
    }

    async fn fetch(&self) -> anyhow::Result<Report> {
        let stream = TcpStream::connect(&self.address).await?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        let request = Request::get(PATH)
            .header(HOST, &self.authority)
            .body(Empty::<Bytes>::new())?;
        let answer = async {
            let response = sender.send_request(request).await?;
            if response.status() != StatusCode::OK {
                bail!("{PATH}: the answer is {}", response.status());
            }
            let body = Limited::new(response.into_body(), BYTES_MAX).collect().await;
            let body = body.map_err(|error| anyhow::anyhow!("{PATH}: {error}"))?;
            serde_json::from_slice(&body.to_bytes()).context("this is no report of leakmon's")
        };
        let mut connection = std::pin::pin!(connection);
        let mut answer = std::pin::pin!(answer);
        // The connection must be driven while the answer is waited for.
        tokio::select! {
            report = &mut answer => report,
            ended = &mut connection => {
                ended?;
                answer.await
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpListener,
    };

    #[test]
    fn only_what_can_be_reached_is_taken() {
        for (url, address) in [
            ("http://127.0.0.1:9000", "127.0.0.1:9000"),
            ("http://host/", "host:5325"),
            ("http://[::1]:1", "[::1]:1"),
        ] {
            assert_eq!(Daemon::at(url).unwrap().address, address);
        }
        for url in [
            "",
            "host:1",
            "https://host",
            "http://",
            "http://a@host",
            "http://host/metrics",
            "http://host?x",
            "ftp://host",
        ] {
            let error = Daemon::at(url).unwrap_err();
            assert!(error.to_string().contains("http://HOST:PORT"), "{url}: {error}");
        }
    }

    /// What is said of a server that answers with these bytes.
    async fn answered(answer: &'static str) -> anyhow::Result<Report> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let daemon = Daemon::at(&format!("http://{}", listener.local_addr()?))?;
        let serve = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let _request = stream.read(&mut [0; 1024]).await.unwrap();
            stream.write_all(answer.as_bytes()).await.unwrap();
        };
        tokio::join!(daemon.report(), serve).0
    }

    #[tokio::test]
    async fn a_report_is_read_and_anything_else_is_said() {
        let report = r#"{"schema":1,"observed_seconds":1.0,"targets":[],"callsites":[],"loss":{"events_dropped":0,"live_full":0,"stacks_full":0,"stacks_truncated":0,"unmatched_ends":0,"replaced":0}}"#;
        let ok: &'static str =
            Box::leak(format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{report}", report.len()).into());
        assert_eq!(answered(ok).await.unwrap().schema, 1);
        for (answer, expected) in [
            ("HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n", "404"),
            ("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}", "no report"),
            ("SSH-2.0-x\r\n", "http://127.0.0.1"),
        ] {
            let error = format!("{:#}", answered(answer).await.unwrap_err());
            assert!(error.contains(expected), "{error}");
        }
    }

    #[tokio::test]
    async fn who_does_not_listen_is_named() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        drop(listener);
        let error = format!("{:#}", Daemon::at(&url).unwrap().report().await.unwrap_err());
        assert!(error.starts_with(&url), "{error}");
    }
}
