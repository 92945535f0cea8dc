//! Where the API server is and who we are to it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};

use super::request::describe;

/// How long a connection may take to come up.
const CONNECT_WITHIN: Duration = Duration::from_secs(5);

/// How to find the API server.
#[derive(Clone, Debug, Default)]
pub struct KubernetesConfig {
    /// A kubeconfig file; `None`: what a pod finds in its environment.
    pub kubeconfig: Option<PathBuf>,
    /// A context of that file; `None`: its current one.
    pub context: Option<String>,
}

/// Why there is no API server to watch. One that does not answer is none of these: it is asked again.
#[derive(Debug, thiserror::Error)]
pub enum KubernetesError {
    /// The file cannot be read, or is no kubeconfig.
    #[error("kubeconfig {}: {problem}", path.display())]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// The file has no such context.
    #[error("kubeconfig {}: no context `{context}`, {expected}", path.display())]
    NoContext {
        /// The file.
        path: PathBuf,
        /// The context that was asked for.
        context: String,
        /// Those that there are, in words.
        expected: String,
    },
    /// The file names no current context, and none was asked for.
    #[error("kubeconfig {}: it has no current-context; name one with --context, {expected}", path.display())]
    NoCurrentContext {
        /// The file.
        path: PathBuf,
        /// Those that there are, in words.
        expected: String,
    },
    /// A context was named without a file.
    #[error("context `{context}` is of no file, expected --kubeconfig FILE beside --context")]
    ContextWithoutFile {
        /// The context.
        context: String,
    },
    /// This is no pod, or one without a service account.
    #[error(
        "not in a pod of a cluster ({problem}); name the API server with --kubeconfig FILE, or the objects with \
         --manifests DIR"
    )]
    NotInCluster {
        /// What is missing.
        problem: String,
    },
    /// There is no way to speak with the server.
    #[error("cannot make a client for the API server {server}: {problem}")]
    Client {
        /// Its address.
        server: String,
        /// What is wrong.
        problem: String,
    },
}

/// Makes a client, and says where it leads. Asks the server nothing.
pub(super) async fn client(config: &KubernetesConfig) -> Result<(Client, String), KubernetesError> {
    let mut config = match (&config.kubeconfig, &config.context) {
        (Some(path), context) => from_file(path, context.as_deref()).await?,
        (None, Some(context)) => return Err(KubernetesError::ContextWithoutFile { context: context.clone() }),
        (None, None) => {
            Config::incluster().map_err(|error| KubernetesError::NotInCluster { problem: describe(&error) })?
        }
    };
    config.connect_timeout = Some(CONNECT_WITHIN);
    // Each kind waits and tries again by itself, and says so.
    config.default_retry = false;
    // Whoever wrote a name and a password into the address did not mean it for a log.
    let host = config.cluster_url.authority().map_or("", |authority| {
        authority.as_str().rsplit_once('@').map_or(authority.as_str(), |(_credentials, host)| host)
    });
    let server = format!("{}://{host}", config.cluster_url.scheme_str().unwrap_or("https"));
    let client = Client::try_from(config)
        .map_err(|error| KubernetesError::Client { server: server.clone(), problem: describe(&error) })?;
    Ok((client, server))
}

async fn from_file(path: &Path, context: Option<&str>) -> Result<Config, KubernetesError> {
    let failed = |problem: String| KubernetesError::Kubeconfig { path: path.to_owned(), problem };
    // Read by us: the error of the library quotes the path a second time.
    let text = std::fs::read_to_string(path).map_err(|error| failed(format!("cannot be read: {error}")))?;
    let located = Kubeconfig::read_from(path);
    let file = match located {
        Ok(file) => file,
        // The parser quotes lines of the file, and a file of this kind holds credentials.
        Err(_quotes) if Kubeconfig::from_yaml(&text).is_err() => {
            return Err(failed("it is no kubeconfig in YAML; `kubectl config view` shows how one looks".to_owned()));
        }
        Err(error) => return Err(failed(describe(&error))),
    };
    let names: Vec<_> = file.contexts.iter().map(|context| context.name.clone()).collect();
    let expected = if names.is_empty() {
        "it has none at all".to_owned()
    } else {
        format!("expected one of {}", names.join(", "))
    };
    let chosen = context.map(str::to_owned).or_else(|| file.current_context.clone()).filter(|name| !name.is_empty());
    let Some(context) = chosen else {
        return Err(KubernetesError::NoCurrentContext { path: path.to_owned(), expected });
    };
    if !names.contains(&context) {
        return Err(KubernetesError::NoContext { path: path.to_owned(), context, expected });
    }
    let options = KubeConfigOptions { context: Some(context.clone()), ..KubeConfigOptions::default() };
    let config = Config::from_custom_kubeconfig(file, &options).await;
    config.map_err(|error| failed(format!("context `{context}`: {}", describe(&error))))
}
