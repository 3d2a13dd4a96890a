//! `tls CERT KEY [CA] { client_auth MODE; keylog FILE }`: how the `tls://` zones of a block are served.
//!
//! CoreDNS's other form, which has certificates issued by ACME, is refused: what runs on every node should not hold an
//! account with an authority. Files that are renewed by others are read again as they change.

use std::path::PathBuf;

use super::{count, one, options, unknown_option};
use crate::config::tls::{ClientAuth, KeyPair, ServerTls};
use crate::context::{Context, Problem};
use crate::parser::Directive;
use crate::report::{Diagnostic, shown};

const FORM: &str = "tls CERT KEY [CA]";

/// The options of the form that is not supported.
const ACME: [&str; 6] = ["acme", "email", "ca", "storage", "ca_root", "resolver"];

/// The words of `client_auth` (CoreDNS `plugin/tls`).
const MODES: [(&str, ClientAuth); 5] = [
    ("nocert", ClientAuth::No),
    ("request", ClientAuth::Request),
    ("require", ClientAuth::RequireAny),
    ("verify_if_given", ClientAuth::VerifyIfGiven),
    ("require_and_verify", ClientAuth::RequireAndVerify),
];

pub(super) fn read(context: &mut Context<'_>, directive: &Directive) -> Option<ServerTls> {
    let by_acme = directive.options.iter().flatten().find(|option| option.name.text == "acme");
    if let Some(acme) = by_acme {
        context.report(
            Diagnostic::error(acme.name.span, "certificates by ACME are not supported by this version")
                .label("CoreDNS has this option")
                .help("let cert-manager issue the certificate, mount its Secret, and write `tls CERT KEY`"),
        );
        return None;
    }
    if !count(context, &directive.name, &directive.arguments, (2, 3), FORM) {
        return None;
    }
    let mut paths = directive.arguments.iter().map(|token| PathBuf::from(&token.text));
    let pair = KeyPair { certificate: paths.next()?, key: paths.next()? };
    let mut tls = ServerTls { pair, authorities: paths.next(), client_auth: ClientAuth::No };
    for option in options(context, directive, &[]) {
        match option.name.text.as_str() {
            "client_auth" => {
                let Some(token) = one(context, option, "client_auth MODE") else { continue };
                let known = MODES.iter().find(|(word, _)| *word == token.text).map(|(_, mode)| *mode);
                let modes = || MODES.map(|(word, _)| word).join("|");
                let mode = known.ok_or_else(|| {
                    Problem::new(format!("unknown kind of client authentication: {}", shown(&token.text)))
                        .help(format!("write `client_auth {}`", modes()))
                });
                if let Some(mode) = context.accept(token.span, mode) {
                    tls.client_auth = mode;
                }
            }
            "keylog" => {
                one(context, option, "keylog FILE");
                let message = "`keylog` is accepted and does nothing here";
                let warning = Diagnostic::warning(option.name.span, message);
                context.report(warning.help("keys of connections are written nowhere"));
            }
            _ => unknown_option(context, directive, option, &["client_auth", "keylog"], &ACME),
        }
    }
    if let Some(authorities) = directive.arguments.get(2).filter(|_| !tls.client_auth.verifies()) {
        context.report(
            Diagnostic::warning(authorities.span, "no client's certificate is verified by these authorities").help(
                "write `client_auth require_and_verify` (or `verify_if_given`) into braces behind, or leave the file out",
            ),
        );
    }
    Some(tls)
}
