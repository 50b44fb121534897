//! Takes secrets out of text before it leaves for somebody else's eyes.
//!
//! This is the last of two gates: what goes into a support bundle is chosen so that it holds no secret, and then every text goes through
//! here, for what people wrote where they should not have, and for our own mistakes. Hidden are: secrets that the daemon knows, word for word;
//! private keys in PEM; tokens by their form (`splice-api-1.…`, `splice-join-1.…`, JSON web tokens); what follows `Bearer` and `Basic`; the
//! value behind every name that says `password`, `passphrase`, `secret`, `token`, `credential`, `cookie`, `authorization` or a kind of key,
//! in TOML, JSON, logs, headers, URLs and command lines. It hides too much rather than too little; a secret with neither a form nor a name
//! that the daemon does not know cannot be told from any other word.

/// What is shown instead.
pub const HIDDEN: &str = "[redacted]";

/// Shortest secret that is looked for word for word: a shorter one would be found everywhere.
const LITERAL_BYTES_MIN: usize = 6;
/// Shortest token behind `Bearer` or `Basic`, which are words of prose as well.
const SCHEME_TOKEN_BYTES_MIN: usize = 8;

const PEM_BEGIN: &str = "-----BEGIN ";
const PEM_END: &str = "-----END ";
const PEM_DASHES: &str = "-----";

/// A name is secret if it is one of these, or ends with `_` or `-` and one of them.
const SECRET_NAMES: &[&str] = &[
    "password",
    "passwords",
    "passwd",
    "passphrase",
    "secret",
    "secrets",
    "token",
    "tokens",
    "api_key",
    "apikey",
    "api-key",
    "private_key",
    "private-key",
    "secret_key",
    "id_key",
    "key_pem",
    "credential",
    "credentials",
    "authorization",
    "cookie",
    "totp",
];

/// Names whose value goes on to the end of the line.
const HEADER_NAMES: &[&str] = &["authorization", "cookie"];

/// See the module.
#[derive(Default)]
pub struct Redactor {
    literals: Vec<String>,
}

impl Redactor {
    /// Hides these words too, wherever they are, also as JSON writes them.
    pub fn new(literals: impl IntoIterator<Item = String>) -> Self {
        let mut known = Vec::new();
        for literal in literals {
            let literal = literal.trim();
            if literal.len() < LITERAL_BYTES_MIN {
                continue;
            }
            let quoted = serde_json::to_string(literal).unwrap_or_default();
            let quoted = quoted.strip_prefix('"').and_then(|q| q.strip_suffix('"'));
            known.extend(quoted.filter(|q| *q != literal).map(str::to_owned));
            known.push(literal.to_owned());
        }
        // The longest first, lest a part of it is hidden and the rest shown.
        known.sort_by_key(|literal| std::cmp::Reverse(literal.len()));
        Self { literals: known }
    }

    /// The text without secrets.
    pub fn text(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for literal in &self.literals {
            text = text.replace(literal.as_str(), HIDDEN);
        }
        words(&user_info(&private_keys(&text)))
    }
}

impl std::fmt::Debug for Redactor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Redactor({} literals)", self.literals.len())
    }
}

/// Hides PEM blocks whose label says that they are private; one without an end goes on to the end of the text.
fn private_keys(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(begin) = rest.find(PEM_BEGIN) {
        let (before, block) = rest.split_at(begin);
        out.push_str(before);
        let label = &block[PEM_BEGIN.len()..];
        let label = &label[..label.find(PEM_DASHES).unwrap_or(label.len())];
        if !label.contains("PRIVATE") {
            out.push_str(PEM_BEGIN);
            rest = &block[PEM_BEGIN.len()..];
            continue;
        }
        out.push_str(HIDDEN);
        let end = block.find(PEM_END).map(|at| at + PEM_END.len());
        let end = end.and_then(|at| Some(at + block[at..].find(PEM_DASHES)? + PEM_DASHES.len()));
        rest = &block[end.unwrap_or(block.len())..];
    }
    out.push_str(rest);
    out
}

/// Hides user and password of URLs.
fn user_info(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("://") {
        let (before, behind) = rest.split_at(at + 3);
        out.push_str(before);
        let ends = |c: char| c.is_whitespace() || matches!(c, '/' | '?' | '#' | '"' | '\'' | '\\');
        let host = &behind[..behind.find(ends).unwrap_or(behind.len())];
        rest = match host.rfind('@') {
            Some(at) => {
                out.push_str(HIDDEN);
                &behind[at..]
            }
            None => behind,
        };
    }
    out.push_str(rest);
    out
}

/// Hides tokens by their form and values by their names.
fn words(text: &str) -> String {
    let is_word = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(begin) = rest.find(is_word) {
        let (before, from) = rest.split_at(begin);
        out.push_str(before);
        let (word, behind) = from.split_at(from.find(|c| !is_word(c)).unwrap_or(from.len()));
        rest = behind;
        if is_token(word) {
            out.push_str(HIDDEN);
            continue;
        }
        out.push_str(word);
        if let Some((skip, len)) = value_of(word, behind) {
            out.push_str(&behind[..skip]);
            out.push_str(HIDDEN);
            rest = &behind[skip + len..];
        }
    }
    out.push_str(rest);
    out
}

/// `splice-KIND-N.…`, and JSON web tokens.
fn is_token(word: &str) -> bool {
    let ours = word.split_once('.').is_some_and(|(head, tail)| {
        let number = head.strip_prefix("splice-").and_then(|h| h.split_once('-'));
        let is_number = |n: &str| !n.is_empty() && n.bytes().all(|c| c.is_ascii_digit());
        number.is_some_and(|(_, number)| is_number(number)) && tail.len() >= SCHEME_TOKEN_BYTES_MIN
    });
    ours || (word.starts_with("eyJ") && word.matches('.').count() == 2)
}

/// Where in `behind` the value of `word` is, if that is secret: how many bytes come before it, and its length.
fn value_of(word: &str, behind: &str) -> Option<(usize, usize)> {
    let name = word.trim_start_matches('-').trim_end_matches('.');
    let name = name.rsplit('.').next()?.to_ascii_lowercase();
    if matches!(name.as_str(), "bearer" | "basic") {
        let token = behind.strip_prefix(' ')?;
        let ends = |c: char| c.is_whitespace() || matches!(c, '"' | '\'' | '\\' | ',' | ';');
        let len = token.find(ends).unwrap_or(token.len());
        return (len >= SCHEME_TOKEN_BYTES_MIN).then_some((1, len));
    }
    let is_one_of = |names: &[&str]| {
        names.iter().any(|secret| {
            let head = name.strip_suffix(secret);
            head.is_some_and(|head| head.is_empty() || head.ends_with(['_', '-']))
        })
    };
    if !is_one_of(SECRET_NAMES) {
        return None;
    }
    let (skip, quote) = value_begins(behind, word.starts_with("--"))?;
    let value = &behind[skip..];
    let len = match quote {
        Some(quote) => end_of_quoted(value, quote),
        None if value.starts_with('[') => value.find(']').map_or(value.len(), |at| at + 1),
        // What it holds has names of its own.
        None if value.starts_with('{') => return None,
        None if is_one_of(HEADER_NAMES) => value.find(['\n', '"', '\\']).unwrap_or(value.len()),
        None => {
            let ends =
                |c: char| c.is_whitespace() || matches!(c, ',' | ';' | '&' | '}' | ')' | '"');
            value.find(ends).unwrap_or(value.len())
        }
    };
    let is_nothing = quote.is_none() && matches!(&value[..len], "null" | "true" | "false");
    (len > 0 && !is_nothing).then_some((skip, len))
}

/// Goes over what is between a name and its value: the name's closing quote, spaces, `=` or `:`, the value's opening quote, which is
/// answered as it is written. An option of a command line (`is_option`) may have a space alone.
fn value_begins(behind: &str, is_option: bool) -> Option<(usize, Option<&str>)> {
    let mut rest = behind;
    for quote in ["\\\"", "\"", "'"] {
        rest = rest.strip_prefix(quote).unwrap_or(rest);
    }
    let spaced = rest.trim_start_matches([' ', '\t']);
    let had_space = spaced.len() < rest.len();
    rest = match spaced.strip_prefix(['=', ':']) {
        // `:=` and `=>` are assignments too.
        Some(value) => value.strip_prefix(['=', '>']).unwrap_or(value),
        None if is_option && had_space => spaced,
        None => return None,
    };
    rest = rest.trim_start_matches([' ', '\t']);
    let quotes = ["\\\"", "\"\"\"", "\"", "'"];
    let quote = quotes.into_iter().find(|quote| rest.starts_with(quote));
    let skip = behind.len() - rest.len() + quote.map_or(0, str::len);
    Some((skip, quote))
}

/// How long a quoted value is, without its closing quote. Only TOML's long strings go over lines: a quote that is never closed must not
/// take the next line's for its own.
fn end_of_quoted(value: &str, quote: &str) -> usize {
    let lines_end = if quote.len() == 3 {
        None
    } else {
        value.find('\n')
    };
    let value = &value[..lines_end.unwrap_or(value.len())];
    let mut from = 0;
    while let Some(at) = value[from..].find(quote) {
        let end = from + at;
        // A quote with a backslash of its own before it belongs to the value.
        let backslashes = value[..end]
            .bytes()
            .rev()
            .take_while(|c| *c == b'\\')
            .count();
        if quote.starts_with('\\') || backslashes % 2 == 0 {
            return end;
        }
        from = end + quote.len();
    }
    value.len()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn hide(text: &str) -> String {
        Redactor::default().text(text)
    }

    #[test]
    fn secrets_by_their_names() {
        for (text, clean) in [
            (
                "password = \"hunter2\"\nnext = 1",
                "password = \"[redacted]\"\nnext = 1",
            ),
            ("ldap_password='a b'", "ldap_password='[redacted]'"),
            (
                r#"{"token":"abc","n":1}"#,
                r#"{"token":"[redacted]","n":1}"#,
            ),
            (
                r#"{"client_secret": "a\"b\\", "n": 1}"#,
                r#"{"client_secret": "[redacted]", "n": 1}"#,
            ),
            (
                r#""fields":"{\"token\":\"abc\",\"n\":1}""#,
                r#""fields":"{\"token\":\"[redacted]\",\"n\":1}""#,
            ),
            (
                "failed token=abc desktop=alice",
                "failed token=[redacted] desktop=alice",
            ),
            (
                "Authorization: Digest a=b, c=d\nHost: x",
                "Authorization: [redacted]\nHost: x",
            ),
            ("sent Bearer abcdefgh12 to x", "sent Bearer [redacted] to x"),
            ("a bearer of it", "a bearer of it"),
            ("GET /x?token=abc&n=1", "GET /x?token=[redacted]&n=1"),
            (
                "splice --token abc --url x",
                "splice --token [redacted] --url x",
            ),
            (
                "splice --token=abc --url x",
                "splice --token=[redacted] --url x",
            ),
            (
                "tokens = [\"a\", \"b\"]\nn = 1",
                "tokens = [redacted]\nn = 1",
            ),
            ("auth.password: x", "auth.password: [redacted]"),
            (
                r#"{"token":null,"secret":{"name":"a"}}"#,
                r#"{"token":null,"secret":{"name":"a"}}"#,
            ),
            (
                "passphrase_file = \"/etc/splice/passphrase\"",
                "passphrase_file = \"/etc/splice/passphrase\"",
            ),
            ("the token is not known here", "the token is not known here"),
        ] {
            assert_eq!(hide(text), clean);
        }
    }

    #[test]
    fn secrets_by_their_form() {
        let api = format!("splice-api-1.{}", "0a".repeat(32));
        let join = format!("splice-join-1.{}", "1b".repeat(80));
        let text = format!("made {api}, then join {join}; eyJhbGciOi.eyJzdWIi.c2ln");
        assert_eq!(
            hide(&text),
            format!("made {HIDDEN}, then join {HIDDEN}; {HIDDEN}")
        );
        assert_eq!(
            hide("splice-vmm 0.1.0 and splice-branch.service"),
            "splice-vmm 0.1.0 and splice-branch.service"
        );
        let pem = "x\n-----BEGIN PRIVATE KEY-----\nMIIB\n-----END PRIVATE KEY-----\ny";
        assert_eq!(hide(pem), format!("x\n{HIDDEN}\ny"));
        let escaped =
            r#"{"a":"-----BEGIN EC PRIVATE KEY-----\nMIIB\n-----END EC PRIVATE KEY-----\n","b":1}"#;
        assert_eq!(hide(escaped), format!(r#"{{"a":"{HIDDEN}\n","b":1}}"#));
        assert_eq!(hide("-----BEGIN PRIVATE KEY-----\nMII"), HIDDEN);
        let public = "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----";
        assert_eq!(hide(public), public);
        assert_eq!(
            hide("ldap://cn:pw@host/x and a@b"),
            format!("ldap://{HIDDEN}@host/x and a@b")
        );
    }

    #[test]
    fn secrets_that_are_known() {
        let known = ["open sesame\n", "open \"sesame\"", "abc"].map(str::to_owned);
        let redactor = Redactor::new(known);
        assert_eq!(
            redactor.text("say open sesame, abc"),
            format!("say {HIDDEN}, abc")
        );
        assert_eq!(
            redactor.text(r#"{"x":"open \"sesame\""}"#),
            format!(r#"{{"x":"{HIDDEN}"}}"#)
        );
        assert!(!format!("{redactor:?}").contains("sesame"));
    }

    /// A planted secret and the ways in which texts hold it.
    fn planted() -> impl Strategy<Value = (String, String)> {
        let names = prop::sample::select(SECRET_NAMES);
        ("[A-Za-z0-9]{12,40}", names, 0..7u8).prop_map(|(secret, name, way)| {
            let text = match way {
                0 => format!("{name} = \"{secret}\""),
                1 => format!("{{\"{name}\":\"{secret}\",\"n\":1}}"),
                2 => format!("x.my_{name}={secret} y=2"),
                3 => format!("--{name} {secret} --more"),
                4 => format!("splice-api-1.{secret}"),
                5 => format!("\\\"{name}\\\": \\\"{secret}\\\""),
                _ => format!(
                    "-----BEGIN RSA PRIVATE KEY-----\n{secret}\n-----END RSA PRIVATE KEY-----"
                ),
            };
            (secret, text)
        })
    }

    proptest! {
        /// Whatever is around them.
        #[test]
        fn planted_secrets_are_hidden(before in "\\PC{0,40}", after in "\\PC{0,40}", (secret, text) in planted()) {
            let clean = hide(&format!("{before}\n{text}\n{after}"));
            prop_assert!(!clean.contains(&secret), "{clean}");
        }

        /// Foreign text of any kind is taken, and what was hidden stays so.
        #[test]
        fn any_text_is_taken(text in "(\\PC|[\"'\\\\=:{}\\[\\] \n]|token|secret|://|-----BEGIN |PRIVATE|Bearer ){0,60}") {
            let once = hide(&text);
            prop_assert!(once.len() <= text.len() * 11 + 11);
        }
    }
}
