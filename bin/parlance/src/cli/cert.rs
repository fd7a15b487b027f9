//! `parlance cert`: certificates for development.

use std::path::PathBuf;

use clap::Subcommand;

use crate::{failure::Failure, output, tls};

/// Make certificates
#[derive(Debug, Subcommand)]
pub(super) enum Cert {
    /// Make a development CA and a server certificate for this machine
    Dev {
        /// Where to write ca.pem, cert.pem and key.pem
        #[arg(long, value_name = "DIR", default_value = "certs")]
        dir: PathBuf,
        /// One more host name or IP address that clients use; can be repeated
        #[arg(long, value_name = "NAME")]
        host: Vec<String>,
        /// Replace files that exist
        #[arg(long)]
        force: bool,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

impl Cert {
    pub(super) fn run(self) -> Result<(), Failure> {
        let Self::Dev { dir, host, force, json } = self;
        let made = tls::make_dev_certificate(&dir, &host, force)?;
        if json {
            output::json(&made);
            return Ok(());
        }
        let (ca, cert, key) = (made.ca.display(), made.cert.display(), made.key.display());
        output::line(format!("Made a certificate for {}.", made.names.join(", ")));
        output::line("Serve with it:");
        output::line(format!("  parlance up --tls-cert {cert} --tls-key {key}"));
        output::line("Let clients trust it:");
        output::line(format!("  parlance chat --server https://localhost:8080 --ca-cert {ca}"));
        output::line(format!("  curl --cacert {ca} https://localhost:8080/readyz"));
        Ok(())
    }
}
