//! The bare echo: what the same bytes cost on `axum::serve` when nothing is stored, checked or logged.

use anyhow::Result;
use axum::{
    Router,
    extract::{Path, State},
    http::{StatusCode, header},
    response::IntoResponse,
    routing::{get, post},
};
use bytes::Bytes;
use clap::Args;

const PAGE_BYTES_MAX: usize = 4 * 1024 * 1024;

/// What `bench-echo` takes.
#[derive(Debug, Args)]
pub(crate) struct EchoArgs {
    /// The loopback port to listen on
    #[arg(long)]
    port: u16,
}

/// Serves until the process is stopped.
pub(crate) fn serve(args: &EchoArgs) -> Result<()> {
    let page = Bytes::from(vec![b' '; PAGE_BYTES_MAX]);
    let router = Router::new()
        .route("/readyz", get(async || StatusCode::OK))
        .route("/echo", post(echo))
        .route("/echo-page/{bytes}", get(echo_page))
        .with_state(page);
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(async {
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", args.port)).await?;
        axum::serve(listener, router).await?;
        Ok(())
    })
}

async fn echo(body: Bytes) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "application/json")], body)
}

/// A body of as many bytes as the path asks for, cut from one that is already there.
async fn echo_page(Path(bytes): Path<usize>, State(page): State<Bytes>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "application/json")], page.slice(..bytes.min(PAGE_BYTES_MAX)))
}
