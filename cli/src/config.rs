//! `config.toml`: a few lines, all optional; unknown keys are errors.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::{CliError, Exit};

/// The configuration with its defaults.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Config {
    pub(crate) api: Listen,
    pub(crate) mcp: Listen,
    pub(crate) model: Model,
}

/// Where a listener binds.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Listen {
    /// `ADDRESS:PORT`; port 0 picks one.
    pub(crate) listen: String,
}

impl Default for Config {
    fn default() -> Self {
        let on = |port: u16| Listen {
            listen: format!("127.0.0.1:{port}"),
        };
        Self {
            api: on(2528),
            mcp: on(2529),
            model: Model::default(),
        }
    }
}

/// Which model answers.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Model {
    /// Base URL of a Messages API.
    pub(crate) base_url: String,
    /// Model that `session new` names in a new agent.
    pub(crate) name: String,
}

impl Default for Model {
    fn default() -> Self {
        Self {
            base_url: "https://api.anthropic.com".to_owned(),
            name: "claude-sonnet-4-5".to_owned(),
        }
    }
}

impl Config {
    /// Reads the file; its absence is the defaults.
    pub(crate) fn load(path: &Path) -> Result<Self, CliError> {
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Ok(Self::default());
            }
            Err(error) => return Err(CliError::file("reading", path, &error)),
        };
        let config: Self = toml::from_str(&text).map_err(|error| {
            CliError::new(
                Exit::Config,
                "config_malformed",
                format!("{} is not a valid configuration", path.display()),
            )
            .because(error.to_string().trim_end())
            .fix("correct the line, or remove the file for the defaults")
        })?;
        Ok(config)
    }

    /// Writes the file for its owner alone.
    #[cfg(feature = "operate")]
    pub(crate) fn save(&self, path: &Path) -> Result<(), CliError> {
        let text = toml::to_string(self).map_err(|error| CliError::internal(error.to_string()))?;
        crate::home::write_private(path, text.as_bytes())
    }

    /// The model's base URL, parsed.
    #[cfg(any(feature = "operate", feature = "tools"))]
    pub(crate) fn model_url(&self) -> Result<url::Url, CliError> {
        url::Url::parse(&self.model.base_url).map_err(|error| {
            CliError::new(
                Exit::Config,
                "config_malformed",
                format!("model.base_url '{}' is no URL", self.model.base_url),
            )
            .because(error)
        })
    }
}
