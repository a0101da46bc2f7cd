//! The project's own commands: `cargo xtask test`, `cargo xtask ci`, `cargo xtask postgres` and `cargo xtask bench`.

mod bench;
mod postgres;
mod redis;
mod relevance;
mod schemathesis;
mod sdk;
mod soak;
mod test;
mod wheel;

use anyhow::Result;
use clap::{Parser, Subcommand};

#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", about = "The project's own commands")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Format check, clippy, every test, and the documentation: what has to pass before a change is taken
    Test(test::TestArgs),
    /// Everything `test` runs, and `cargo deny` over licences, bans and sources
    Ci(test::TestArgs),
    /// Start a PostgreSQL with pgvector, for tests that are run by hand, and keep it until Ctrl-C
    Postgres(postgres::PostgresArgs),
    /// Measure the release binary against a bare echo, a plain SQLite loop and pgbench on this machine
    Bench(bench::BenchArgs),
    /// Measure how well a server that runs finds messages that are known; stores conversations in it
    Relevance(relevance::RelevanceArgs),
    /// Run the tests of faults with many more rounds: server and database killed, answers swallowed, requests repeated
    Soak(soak::SoakArgs),
    /// Ask a running server what follows from the OpenAPI document, with Schemathesis from PyPI
    Schemathesis(schemathesis::SchemathesisArgs),
    /// Drive a running server with OpenAI's SDKs for Python and JavaScript, and its Agents SDK
    Sdk(sdk::SdkArgs),
    /// The bare echo server that `bench` compares with
    #[command(hide = true)]
    BenchEcho(bench::echo::EchoArgs),
}

fn main() -> Result<()> {
    match Cli::parse().command {
        Command::Test(args) => test::test(&args),
        Command::Ci(args) => test::ci(&args),
        Command::Postgres(args) => postgres::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Relevance(args) => relevance::run(&args),
        Command::Soak(args) => soak::run(&args),
        Command::Schemathesis(args) => schemathesis::run(&args),
        Command::Sdk(args) => sdk::run(&args),
        Command::BenchEcho(args) => bench::echo::serve(&args),
    }
}
