//! Requests to S3, signed: AWS Signature Version 4 (docs.aws.amazon.com, "Authenticating Requests: Using the Authorization Header").
//!
//! Pure. HMAC and SHA-256 are ring's; what is put together here is only the text that they go over. The whole body is covered, and the time, so that
//! a request is good for fifteen minutes and for nothing else.

use std::fmt::Write;

use ring::{digest, hmac};

use super::settings::Credentials;

/// SHA-256 as S3 writes it.
pub fn sha256_hex(bytes: &[u8]) -> String {
    hex::encode(digest::digest(&digest::SHA256, bytes))
}

/// Encodes a value of a query: all but what RFC 3986 calls unreserved.
pub fn encoded(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                out.push(byte as char);
            }
            _ => {
                let _ = write!(out, "%{byte:02X}");
            }
        }
    }
    out
}

/// A query in the order that is signed: by name.
pub fn query(parts: &[(&str, &str)]) -> String {
    let mut parts: Vec<String> = parts
        .iter()
        .map(|(name, value)| format!("{}={}", encoded(name), encoded(value)))
        .collect();
    parts.sort();
    parts.join("&")
}

/// A moment as the signature has it: `20130524T000000Z`.
pub fn stamp(unix_s: u64) -> String {
    let (days, second) = ((unix_s / 86_400) as i64, unix_s % 86_400);
    // Days since 1 March of year 0, in eras of 400 years (Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms").
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 {
        shifted_month + 3
    } else {
        shifted_month - 9
    };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    format!(
        "{year:04}{month:02}{day:02}T{:02}{:02}{:02}Z",
        second / 3600,
        second / 60 % 60,
        second % 60
    )
}

/// What is signed of a request besides its body.
pub struct Unsigned<'a> {
    /// `GET`, `PUT` …
    pub method: &'a str,
    /// The path, encoded.
    pub path: &'a str,
    /// The query, of [`query`].
    pub query: &'a str,
    /// The host, with the port if that is not the scheme's own.
    pub host: &'a str,
    /// Bytes of an object that are wanted: `bytes=0-9`.
    pub range: Option<&'a str>,
    /// [`sha256_hex`] of the body.
    pub body_sha256: &'a str,
}

/// The headers that make a request a signed one, host aside.
pub fn headers(
    request: &Unsigned<'_>,
    credentials: &Credentials,
    region: &str,
    stamp: &str,
) -> Vec<(&'static str, String)> {
    // In the order of their names.
    let mut signed = vec![("host", request.host.to_owned())];
    if let Some(range) = request.range {
        signed.push(("range", range.to_owned()));
    }
    signed.push(("x-amz-content-sha256", request.body_sha256.to_owned()));
    signed.push(("x-amz-date", stamp.to_owned()));
    if let Some(token) = &credentials.session_token {
        signed.push(("x-amz-security-token", token.clone()));
    }
    let names: Vec<&str> = signed.iter().map(|(name, _)| *name).collect();
    let names = names.join(";");
    let mut canonical = format!("{}\n{}\n{}\n", request.method, request.path, request.query);
    for (name, value) in &signed {
        let _ = writeln!(canonical, "{name}:{value}");
    }
    let _ = write!(canonical, "\n{names}\n{}", request.body_sha256);
    let day = &stamp[..8];
    let scope = format!("{day}/{region}/s3/aws4_request");
    let text = format!(
        "AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{}",
        sha256_hex(canonical.as_bytes())
    );
    let secret = format!("AWS4{}", credentials.secret_access_key.as_str());
    let mut key = hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes());
    for part in [day, region, "s3", "aws4_request"] {
        let next = hmac::sign(&key, part.as_bytes());
        key = hmac::Key::new(hmac::HMAC_SHA256, next.as_ref());
    }
    let signature = hex::encode(hmac::sign(&key, text.as_bytes()));
    let authorization = format!(
        "AWS4-HMAC-SHA256 Credential={}/{scope},SignedHeaders={names},Signature={signature}",
        credentials.access_key_id
    );
    let mut headers: Vec<_> = signed.into_iter().skip(1).collect();
    headers.push(("authorization", authorization));
    headers
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn credentials() -> Credentials {
        Credentials {
            access_key_id: "AKIAIOSFODNN7EXAMPLE".into(),
            secret_access_key: "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY".to_owned().into(),
            session_token: None,
        }
    }

    /// The examples of AWS's documentation.
    #[test]
    fn golden_signatures() {
        for (path, parts, range, expected) in [
            (
                "/test.txt",
                &[][..],
                Some("bytes=0-9"),
                "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41",
            ),
            (
                "/",
                &[("lifecycle", "")][..],
                None,
                "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543",
            ),
            (
                "/",
                &[("prefix", "J"), ("max-keys", "2")][..],
                None,
                "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7",
            ),
        ] {
            let request = Unsigned {
                method: "GET",
                path,
                query: &query(parts),
                host: "examplebucket.s3.amazonaws.com",
                range,
                body_sha256: &sha256_hex(b""),
            };
            let headers = headers(&request, &credentials(), "us-east-1", "20130524T000000Z");
            let (name, value) = headers.last().unwrap();
            assert_eq!(*name, "authorization");
            let signature = value.rsplit_once("Signature=").unwrap().1;
            assert_eq!(signature, expected, "{path}");
            assert!(!format!("{:?}", credentials()).contains("wJalr"));
        }
    }

    #[test]
    fn moments_are_written_as_dates_and_values_encoded() {
        for (unix_s, text) in [
            (0, "19700101T000000Z"),
            (951_782_400, "20000229T000000Z"),
            (1_369_353_600, "20130524T000000Z"),
            (1_800_000_000, "20270115T080000Z"),
            (4_107_542_399, "21000228T235959Z"),
            (4_107_542_400, "21000301T000000Z"),
        ] {
            assert_eq!(stamp(unix_s), text);
        }
        assert_eq!(encoded("a/b c+=~"), "a%2Fb%20c%2B%3D~");
        assert_eq!(query(&[("b", "2"), ("a", "")]), "a=&b=2");
    }
}
