//! What S3 answers, as far as it is read: texts of elements, out of XML.
//!
//! Not a parser of XML: it finds `<NAME>text</NAME>` and nothing else, in answers of at most some megabytes. What it finds is a name that is compared with
//! names of ours, a token that is given back as it came, or words for people; so something strange costs a request and no more.

/// The texts of all elements of a name, in order.
pub fn texts(xml: &str, name: &str) -> Vec<String> {
    let (open, close) = (format!("<{name}>"), format!("</{name}>"));
    let mut found = Vec::new();
    let mut rest = xml;
    while let Some((_, behind)) = rest.split_once(&open) {
        let Some((text, next)) = behind.split_once(&close) else {
            break;
        };
        found.push(unescaped(text));
        rest = next;
    }
    found
}

/// The text of the first element of a name.
pub fn text(xml: &str, name: &str) -> Option<String> {
    texts(xml, name).into_iter().next()
}

fn unescaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, behind)) = rest.split_once('&') {
        out.push_str(before);
        let named = behind.split_once(';').and_then(|(name, next)| {
            let c = match name {
                "amp" => '&',
                "lt" => '<',
                "gt" => '>',
                "quot" => '"',
                "apos" => '\'',
                _ => {
                    let code = name.strip_prefix('#')?;
                    let code = match code.strip_prefix('x') {
                        Some(digits) => u32::from_str_radix(digits, 16).ok()?,
                        None => code.parse().ok()?,
                    };
                    char::from_u32(code)?
                }
            };
            Some((c, next))
        });
        match named {
            Some((c, next)) => {
                out.push(c);
                rest = next;
            }
            None => {
                out.push('&');
                rest = behind;
            }
        }
    }
    out.push_str(rest);
    out
}

/// Reads any text as an answer: for the fuzzer.
#[doc(hidden)]
pub fn fuzz_answer(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    for name in ["Key", "UploadId", "Code", "NextContinuationToken"] {
        let found = texts(&text, name);
        let bytes: usize = found.iter().map(String::len).sum();
        assert!(bytes <= text.len(), "no text grows");
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn texts_are_found_in_order_and_unescaped() {
        let xml = "<R><Contents><Key>a/1</Key></Contents><Contents><Key>b&amp;c&#x41;&#66;&no;&</Key></Contents><Key>cut";
        assert_eq!(texts(xml, "Key"), ["a/1", "b&cAB&no;&"]);
        assert_eq!(text(xml, "Code"), None);
        assert_eq!(texts("", "Key"), Vec::<String>::new());
    }

    proptest! {
        #[test]
        fn any_text_is_read(text in "[<>/&;#xKey0-9a-f]{0,200}") {
            fuzz_answer(text.as_bytes());
        }
    }
}
