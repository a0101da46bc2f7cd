//! TLS with the meaning that libpq gives to `sslmode` and `sslrootcert`.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::{WebPkiSupportedAlgorithms, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use tokio_postgres::config::SslMode;
use tokio_postgres_rustls::MakeRustlsConnect;

use crate::error::OpenError;

/// The value of `sslrootcert` that stands for the system's certificate authorities.
const SYSTEM: &str = "system";
/// The protocol's name, which a server demands when TLS begins without a request for it.
const ALPN: &[u8] = b"postgresql";

/// What a URL says of TLS.
#[derive(Debug, Default)]
pub(crate) struct TlsOptions {
    mode: Option<Mode>,
    root: Option<String>,
    certificate: Option<String>,
    key: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Disable,
    Prefer,
    Require,
    VerifyCa,
    VerifyFull,
}

impl TlsOptions {
    /// Takes an option of a URL if it is about TLS; tells whether it was.
    pub(crate) fn take(&mut self, key: &str, value: &str) -> Result<bool, OpenError> {
        match key {
            "sslmode" => self.mode = Some(Mode::parse(value)?),
            "sslrootcert" => self.root = Some(value.to_owned()),
            "sslcert" => self.certificate = Some(value.to_owned()),
            "sslkey" => self.key = Some(value.to_owned()),
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Whether the driver asks for TLS and insists on it.
    pub(crate) fn ssl_mode(&self) -> SslMode {
        match self.mode() {
            Mode::Disable => SslMode::Disable,
            Mode::Prefer => SslMode::Prefer,
            Mode::Require | Mode::VerifyCa | Mode::VerifyFull => SslMode::Require,
        }
    }

    /// What secures connections. Files are read now, and only those that the mode needs.
    pub(crate) fn connector(&self) -> Result<MakeRustlsConnect, OpenError> {
        let provider = Arc::new(ring::default_provider());
        let verifier = self.verifier(provider.signature_verification_algorithms)?;
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("the provider has suites for the default versions")
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier));
        let mut config = match (&self.certificate, &self.key) {
            (Some(certificate), Some(key)) if self.mode() != Mode::Disable => {
                let chain = certificates("sslcert", certificate)?;
                let own = PrivateKeyDer::from_pem_file(key).map_err(|error| unreadable("sslkey", key, &error))?;
                builder.with_client_auth_cert(chain, own).map_err(|error| unreadable("sslkey", key, &error))?
            }
            (Some(_), None) | (None, Some(_)) => {
                return Err(OpenError::new("the database URL needs both sslcert and sslkey, or neither"));
            }
            _ => builder.with_no_client_auth(),
        };
        config.alpn_protocols = vec![ALPN.to_vec()];
        Ok(MakeRustlsConnect::new(config))
    }

    fn mode(&self) -> Mode {
        match (self.mode, self.root.as_deref()) {
            (Some(mode), _) => mode,
            (None, Some(SYSTEM)) => Mode::VerifyFull,
            (None, _) => Mode::Prefer,
        }
    }

    fn verifier(&self, algorithms: WebPkiSupportedAlgorithms) -> Result<Verifier, OpenError> {
        let root = self.root.as_deref();
        let trust = match (self.mode(), root) {
            // Anybody gets a certificate from a public authority: without the name it says nothing.
            (Mode::Require | Mode::VerifyCa, Some(SYSTEM)) | (Mode::VerifyCa, None) => {
                return Err(OpenError::new(
                    "the database URL trusts the system's certificate authorities, which needs sslmode=verify-full; \
                     sslmode=verify-ca needs a file in sslrootcert=",
                ));
            }
            (Mode::Disable | Mode::Prefer, _) | (Mode::Require, None) => None,
            (Mode::VerifyFull, None | Some(SYSTEM)) => Some(Trust::system()?),
            (Mode::Require | Mode::VerifyCa | Mode::VerifyFull, Some(file)) => Some(Trust::file(file)?),
        };
        Ok(Verifier { trust, checks_name: self.mode() == Mode::VerifyFull, algorithms })
    }
}

impl Mode {
    fn parse(value: &str) -> Result<Self, OpenError> {
        Ok(match value {
            "disable" => Self::Disable,
            // The driver asks for TLS before it knows whether the server would do without.
            "allow" | "prefer" => Self::Prefer,
            "require" => Self::Require,
            "verify-ca" => Self::VerifyCa,
            "verify-full" => Self::VerifyFull,
            _ => {
                return Err(OpenError::new(
                    "sslmode in the database URL must be disable, allow, prefer, require, verify-ca or verify-full",
                ));
            }
        })
    }
}

fn certificates(option: &str, file: &str) -> Result<Vec<CertificateDer<'static>>, OpenError> {
    let read = CertificateDer::pem_file_iter(file).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let certificates = read.map_err(|error| unreadable(option, file, &error))?;
    match certificates.is_empty() {
        true => Err(OpenError::new(format!("{file}, which {option} names, holds no certificate in PEM form"))),
        false => Ok(certificates),
    }
}

fn unreadable(option: &str, file: &str, error: &dyn std::fmt::Display) -> OpenError {
    OpenError::new(format!("cannot use {file}, which {option} names in the database URL: {error}"))
}

/// Whose certificates are trusted.
#[derive(Debug)]
struct Trust {
    roots: RootCertStore,
    /// The certificates of the file themselves.
    named: Vec<CertificateDer<'static>>,
}

impl Trust {
    fn file(file: &str) -> Result<Self, OpenError> {
        let named = certificates("sslrootcert", file)?;
        let mut roots = RootCertStore::empty();
        for certificate in &named {
            roots.add(certificate.clone()).map_err(|error| unreadable("sslrootcert", file, &error))?;
        }
        Ok(Self { roots, named })
    }

    fn system() -> Result<Self, OpenError> {
        let mut roots = RootCertStore::empty();
        let (added, _) = roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        match added {
            0 => Err(OpenError::new(
                "this system has no certificate authorities to verify the database by; install ca-certificates or \
                 name a file in the database URL with sslrootcert=",
            )),
            _ => Ok(Self { roots, named: Vec::new() }),
        }
    }
}

/// Checks the server's certificate as far as the mode demands. That the server holds its key is
/// checked in every mode.
#[derive(Debug)]
struct Verifier {
    /// `None` trusts everybody.
    trust: Option<Trust>,
    checks_name: bool,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let Some(trust) = &self.trust else {
            return Ok(ServerCertVerified::assertion());
        };
        let certificate = ParsedCertificate::try_from(end_entity)?;
        let chain = verify_server_cert_signed_by_trust_anchor(
            &certificate,
            &trust.roots,
            intermediates,
            now,
            self.algorithms.all,
        );
        match chain {
            // A self-signed certificate is often an authority's too; whoever names it means it.
            Err(Error::InvalidCertificate(CertificateError::Other(_))) if trust.named.contains(end_entity) => {}
            chain => chain?,
        }
        if self.checks_name {
            verify_server_name(&certificate, server_name)?;
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
