//! The file of `prometheus`'s `tls`: the web configuration of Prometheus' exporter-toolkit, in YAML.
//!
//! Read: `tls_server_config` with `cert_file`, `key_file`, `client_auth_type`, `client_ca_file` and `min_version`; and what
//! changes nothing here (`max_version: TLS13`, `prefer_server_cipher_suites`, `http_server_config: http2`). The rest
//! (`basic_auth_users`, `cipher_suites`, `headers`, ...) keeps somebody out or changes what is sent, so leaving it out in
//! silence would be wrong: it is refused by name. Relative paths are relative to the file's folder.

use std::io::Read;
use std::path::{Path, PathBuf};

use clap::ValueEnum;
use serde_json::{Map, Value};

use crate::admin_tls::{ClientAuth, MinVersion, TlsFlags};

/// Largest file, in bytes.
const MAX_BYTES: u64 = 64 << 10;

/// Reads the file; `None`: it says nothing of TLS, so HTTP is served (as the toolkit does).
///
/// # Errors
/// In words, without the file's name: it cannot be read, or says what is not supported.
pub fn read(path: &Path) -> Result<Option<TlsFlags>, String> {
    let mut text = String::new();
    let file = std::fs::File::open(path).map_err(|error| error.to_string())?;
    file.take(MAX_BYTES + 1).read_to_string(&mut text).map_err(|error| error.to_string())?;
    if u64::try_from(text.len()).is_ok_and(|length| length > MAX_BYTES) {
        return Err(format!("more than {} KiB", MAX_BYTES >> 10));
    }
    parse(&text, path.parent().unwrap_or(Path::new("")))
}

fn parse(text: &str, folder: &Path) -> Result<Option<TlsFlags>, String> {
    if text.lines().all(|line| line.trim().is_empty() || line.trim_start().starts_with('#')) {
        return Ok(None);
    }
    let value: Value = serde_saphyr::from_str(text).map_err(|error| format!("not YAML: {error}"))?;
    let mut found = None;
    for (key, value) in &mapping(&value, "the file")? {
        match key.as_str() {
            "tls_server_config" => found = server(&mapping(value, key)?, folder)?,
            "http_server_config" => {
                for (option, value) in &mapping(value, key)? {
                    // HTTP/1.1 is served, whatever the client offers.
                    if option != "http2" || !value.is_boolean() {
                        return Err(unsupported(&format!("{key}: {option}")));
                    }
                }
            }
            "basic_auth_users" if mapping(value, key)?.is_empty() => {}
            _ => return Err(unsupported(key)),
        }
    }
    Ok(found)
}

fn server(options: &Map<String, Value>, folder: &Path) -> Result<Option<TlsFlags>, String> {
    let mut flags = TlsFlags {
        enabled: true,
        certificate: PathBuf::new(),
        key: PathBuf::new(),
        client_ca: PathBuf::new(),
        client_auth: ClientAuth::No,
        min_version: MinVersion::Tls12,
    };
    for (name, value) in options {
        let text = value.as_str().unwrap_or_default();
        let path = if text.is_empty() { PathBuf::new() } else { folder.join(text) };
        let full = format!("tls_server_config: {name}");
        match name.as_str() {
            "cert_file" => flags.certificate = path,
            "key_file" => flags.key = path,
            "client_ca_file" => flags.client_ca = path,
            "client_auth_type" if text.is_empty() => {}
            "client_auth_type" => {
                flags.client_auth = ClientAuth::from_str(text, false).map_err(|_| {
                    format!("{full}: {text:?} is not known; write RequireAndVerifyClientCert, say")
                })?;
            }
            "min_version" if matches!(text, "TLS12" | "TLS13") => {
                flags.min_version = if text == "TLS13" { MinVersion::Tls13 } else { MinVersion::Tls12 };
            }
            "min_version" => return Err(format!("{full}: {value} is not offered; write TLS12 or TLS13")),
            "max_version" if text == "TLS13" => {}
            "prefer_server_cipher_suites" if value.is_boolean() => {}
            "cipher_suites" | "curve_preferences" | "client_allowed_sans"
                if value.as_array().is_some_and(Vec::is_empty) => {}
            _ => return Err(unsupported(&full)),
        }
    }
    // What the toolkit takes for no wish for TLS: not whom to let in, and not with what.
    let named = [&flags.certificate, &flags.key, &flags.client_ca];
    if named.iter().all(|path| path.as_os_str().is_empty()) && flags.client_auth == ClientAuth::No {
        return Ok(None);
    }
    for (path, name) in [(&flags.certificate, "cert_file"), (&flags.key, "key_file")] {
        if path.as_os_str().is_empty() {
            return Err(format!("tls_server_config: {name} is missing"));
        }
    }
    Ok(Some(flags))
}

fn mapping(value: &Value, what: &str) -> Result<Map<String, Value>, String> {
    match value {
        Value::Object(mapping) => Ok(mapping.clone()),
        Value::Null => Ok(Map::new()),
        _ => Err(format!("{what} is no mapping")),
    }
}

fn unsupported(what: &str) -> String {
    format!("{what} is not supported by this version; remove it, or serve metrics behind a proxy that has it")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_says_whom_to_let_in() {
        let text = "\
# comment
tls_server_config:
  cert_file: tls.crt
  key_file: /keys/tls.key
  client_auth_type: RequireAndVerifyClientCert
  client_ca_file: ca.crt
  min_version: TLS13
  prefer_server_cipher_suites: true
http_server_config:
  http2: true
";
        let flags = parse(text, Path::new("/etc/web")).unwrap().unwrap();
        let paths = [&flags.certificate, &flags.key, &flags.client_ca];
        assert_eq!(paths, ["/etc/web/tls.crt", "/keys/tls.key", "/etc/web/ca.crt"].map(Path::new));
        assert_eq!((flags.client_auth, flags.min_version), (ClientAuth::RequireAndVerify, MinVersion::Tls13));
        let short = parse("tls_server_config: {cert_file: a, key_file: b}", Path::new("")).unwrap().unwrap();
        assert_eq!((short.client_auth, short.min_version), (ClientAuth::No, MinVersion::Tls12));
        for nothing in [
            "",
            "# nothing\n",
            "basic_auth_users: {}",
            "tls_server_config:\nhttp_server_config:\n",
            "tls_server_config: {min_version: TLS13}",
        ] {
            let read = parse(nothing, Path::new(""));
            assert!(matches!(read, Ok(None)), "{nothing}: {read:?}");
        }
    }

    #[test]
    fn refuses_by_name_what_would_keep_somebody_out() {
        for (text, named) in [
            ("basic_auth_users: {me: x}", "basic_auth_users"),
            ("rate_limit: {}", "rate_limit"),
            ("http_server_config: {headers: {}}", "headers"),
            ("tls_server_config: {cert_file: a}", "key_file"),
            ("tls_server_config: {client_auth_type: RequireAnyClientCert}", "cert_file"),
            ("tls_server_config: {cert_file: a, key_file: b, min_version: TLS10}", "TLS10"),
            ("tls_server_config: {cert_file: a, key_file: b, max_version: TLS12}", "max_version"),
            ("tls_server_config: {cert_file: a, key_file: b, cipher_suites: [X]}", "cipher_suites"),
            ("tls_server_config: {cert_file: a, key_file: b, client_auth_type: Maybe}", "Maybe"),
            ("[1]", "no mapping"),
            (": : :", "YAML"),
        ] {
            let refused = parse(text, Path::new("")).expect_err(text);
            assert!(refused.contains(named), "{text}: {refused}");
        }
    }
}
