//! `chatstore health`: asks a running server, where a container has no other program to do it.

use std::time::Duration;

use anyhow::{Context as _, bail};
use chatstore_server::config::Config;
use clap::Args;
use ureq::Agent;

use crate::agent::{agent, problem};
use crate::serve::reachable;
use crate::settings::{ServeSettings, print};

/// Within this the whole answer must be there.
const TIMEOUT: Duration = Duration::from_secs(2);

#[derive(Args)]
pub(crate) struct HealthArgs {
    /// The server's address, such as http://127.0.0.1:8000 [default: what HOST, PORT or
    /// UNIX_SOCKET say].
    #[arg(long)]
    url: Option<String>,
    #[command(flatten)]
    settings: ServeSettings,
}

pub(crate) fn health(args: &HealthArgs) -> anyhow::Result<()> {
    let url = match &args.url {
        Some(url) => url.clone(),
        None => address(&args.settings.load()?)?,
    };
    // Docker gives every container the proxy of its host, which does not know the container.
    let config = Agent::config_builder().timeout_global(Some(TIMEOUT)).proxy(None);
    let (agent, base) = agent(&url, config)?;
    let answer = agent.get(format!("{base}/readyz")).call();
    let answer = answer.with_context(|| format!("{url} does not answer"))?;
    if !answer.status().is_success() {
        bail!("{url} is not ready: {}", problem(answer));
    }
    print(&format!("{url} is ready\n"))?;
    Ok(())
}

/// Where a server with these settings listens, as this host reaches it.
fn address(config: &Config) -> anyhow::Result<String> {
    if let Some(socket) = &config.unix_socket {
        return Ok(format!("unix:{}", socket.display()));
    }
    if config.port == 0 {
        bail!("with PORT=0 only the server knows its port; give its address in --url");
    }
    let host = match config.host.contains(':') {
        true => format!("[{}]", config.host),
        false => config.host.clone(),
    };
    Ok(reachable(&format!("http://{host}:{}", config.port)))
}

#[cfg(test)]
mod tests {
    use chatstore_server::config::Sources;

    use super::*;

    #[test]
    fn a_server_is_asked_where_this_host_reaches_it() {
        let folder = std::env::temp_dir();
        let address = |variables: &[(&str, &str)]| {
            let sources =
                variables.iter().fold(Sources::new(&folder), |sources, (name, value)| sources.with_env(name, *value));
            address(&Config::load(&sources).unwrap())
        };
        assert_eq!(address(&[]).unwrap(), "http://127.0.0.1:8000");
        assert_eq!(address(&[("HOST", "0.0.0.0"), ("PORT", "9")]).unwrap(), "http://127.0.0.1:9");
        assert_eq!(address(&[("HOST", "::")]).unwrap(), "http://[::1]:8000");
        assert_eq!(address(&[("HOST", "chat.example")]).unwrap(), "http://chat.example:8000");
        assert_eq!(address(&[("UNIX_SOCKET", "/run/c.sock")]).unwrap(), "unix:/run/c.sock");
        assert!(address(&[("PORT", "0")]).is_err());
    }
}
