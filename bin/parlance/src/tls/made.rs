//! What all made certificates have in common, and how they are written.

use std::{
    fs::OpenOptions,
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, KeyUsagePurpose,
};

use crate::failure::Failure;

/// How many days a certificate is valid unless asked otherwise. Browsers take no longer-lived server certificate of an authority that a user
/// added (Apple HT210176: 825 days).
pub(crate) const DAYS: u32 = 800;

/// The clocks of two machines are seldom the same.
const BACKDATED: Duration = Duration::from_secs(60);

/// A certificate for `names`, valid from about now.
pub(super) fn params(
    names: Vec<String>,
    subject: &[(DnType, &str)],
    days: u32,
) -> Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::new(names)?;
    params.distinguished_name = DistinguishedName::new();
    for (kind, value) in subject {
        params.distinguished_name.push(kind.clone(), *value);
    }
    let now = SystemTime::now();
    params.not_before = (now - BACKDATED).into();
    params.not_after = (now + Duration::from_secs(u64::from(days) * 24 * 60 * 60)).into();
    Ok(params)
}

/// Makes it the certificate of an authority that signs for servers and clients, and for no other authority.
pub(super) fn as_authority(mut params: CertificateParams) -> CertificateParams {
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

/// Makes it one that an authority signs, for these purposes.
pub(super) fn as_signed(mut params: CertificateParams, purposes: &[ExtendedKeyUsagePurpose]) -> CertificateParams {
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = purposes.to_vec();
    params.use_authority_key_identifier_extension = true;
    params
}

/// Writes PEM files into `dir`, each for its owner alone.
///
/// # Errors
///
/// Exit code 1 if one cannot be written, or if one exists and `force` is not given: then none is written.
pub(super) fn write_all(dir: &Path, files: &[(&PathBuf, String)], force: bool) -> Result<(), Failure> {
    if let Some((path, _)) = files.iter().find(|(path, _)| !force && path.exists()) {
        return Err(Failure::failed(
            format!("{} exists already", path.display()),
            "Pass --force to replace it, or choose another directory with --dir",
        ));
    }
    let made = std::fs::create_dir_all(dir).map_err(|error| (dir, error));
    let written = made.and_then(|()| {
        files.iter().try_for_each(|(path, pem)| write_private(path, pem).map_err(|error| (path.as_path(), error)))
    });
    written.map_err(|(path, error)| {
        Failure::failed(format!("cannot write {}: {error}", path.display()), "Choose another directory with --dir")
    })
}

fn write_private(path: &Path, pem: &str) -> io::Result<()> {
    // A file that existed keeps its mode, so it is written anew.
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().create_new(true).write(true).mode(0o600).open(path)?;
    file.write_all(pem.as_bytes())?;
    file.sync_all()
}
