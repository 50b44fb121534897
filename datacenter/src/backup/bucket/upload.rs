//! A long object, written in parts: it appears when the last one is there.
//!
//! Invariant: what is written waits until it is a whole part; an object that is short enough is written at once. An upload that is dropped before
//! its end is given up at the bucket, or by the next backup ([`Bucket::give_up_parts`]).

use bytes::Bytes;
use reqwest::Method;

use super::{Bucket, BucketError, Request, answer};
use crate::backup::manifest::{Role, is_ours};

/// Length of a part but the last. S3 wants at least 5 MiB and at most 10,000 parts: 156 GiB of catalog.
const PART_BYTES: usize = 16 << 20;

/// An object that is being written.
pub struct Upload<'a> {
    bucket: &'a Bucket,
    name: String,
    waiting: Vec<u8>,
    /// The upload's id, once there is one, and the tags of its parts.
    begun: Option<(String, Vec<String>)>,
}

impl<'a> Upload<'a> {
    /// Begins; nothing is sent yet.
    pub fn new(bucket: &'a Bucket, name: &str) -> Self {
        Self {
            bucket,
            name: name.to_owned(),
            waiting: Vec::new(),
            begun: None,
        }
    }

    /// Appends bytes.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), BucketError> {
        self.waiting.extend_from_slice(bytes);
        while self.waiting.len() > PART_BYTES {
            let rest = self.waiting.split_off(PART_BYTES);
            let part = std::mem::replace(&mut self.waiting, rest);
            self.part(part)?;
        }
        Ok(())
    }

    fn part(&mut self, bytes: Vec<u8>) -> Result<(), BucketError> {
        let id = match &self.begun {
            Some((id, _)) => id.clone(),
            None => {
                let mut request = Request::new(Method::POST, Some(&self.name));
                request.query = vec![("uploads", "")];
                let begun = self.bucket.ask(&request)?;
                let id = answer::text(&begun.text(), "UploadId");
                let id = id.ok_or_else(|| self.strange("no UploadId"))?;
                self.begun = Some((id.clone(), Vec::new()));
                id
            }
        };
        let count = self.begun.as_ref().map_or(0, |(_, tags)| tags.len());
        let number = (count + 1).to_string();
        let mut request = Request::new(Method::PUT, Some(&self.name));
        request.query = vec![("partNumber", number.as_str()), ("uploadId", id.as_str())];
        request.body = Bytes::from(bytes);
        let done = self.bucket.ask(&request)?;
        let tag = done.etag.ok_or_else(|| self.strange("no ETag"))?;
        if let Some((_, tags)) = &mut self.begun {
            tags.push(tag);
        }
        Ok(())
    }

    fn strange(&self, what: &str) -> BucketError {
        let text = format!("<Code>{what}</Code>");
        BucketError::refused(&self.bucket.host, &self.bucket.place.bucket, 200, &text)
    }

    /// The object is there when this returns.
    pub fn finish(mut self) -> Result<(), BucketError> {
        let rest = std::mem::take(&mut self.waiting);
        if self.begun.is_none() {
            return self.bucket.put(&self.name, Bytes::from(rest));
        }
        if !rest.is_empty() {
            self.part(rest)?;
        }
        let Some((id, tags)) = &self.begun else {
            return Ok(());
        };
        let parts = tags.iter().zip(1..).map(|(tag, number)| {
            let tag = tag.replace('&', "&amp;").replace('<', "&lt;");
            format!("<Part><PartNumber>{number}</PartNumber><ETag>{tag}</ETag></Part>")
        });
        let parts: String = parts.collect();
        let body = format!("<CompleteMultipartUpload>{parts}</CompleteMultipartUpload>");
        let mut request = Request::new(Method::POST, Some(&self.name));
        request.query = vec![("uploadId", id.as_str())];
        request.body = Bytes::from(body);
        let done = self.bucket.ask(&request)?;
        // It may fail behind an answer that began well.
        let text = done.text();
        if answer::text(&text, "Code").is_some() {
            let bucket = &self.bucket.place.bucket;
            return Err(BucketError::refused(&self.bucket.host, bucket, 200, &text));
        }
        self.begun = None;
        Ok(())
    }
}

impl Drop for Upload<'_> {
    fn drop(&mut self) {
        if let Some((id, _)) = self.begun.take()
            && let Err(error) = self.bucket.give_up(&self.name, &id)
        {
            tracing::warn!(object = self.name, %error, "parts of an object are left in the bucket; the next backup gives them up");
        }
    }
}

impl Bucket {
    fn give_up(&self, name: &str, id: &str) -> Result<(), BucketError> {
        let mut request = Request::new(Method::DELETE, Some(name));
        request.query = vec![("uploadId", id)];
        self.ask(&request)?;
        Ok(())
    }

    /// Gives up parts that a backup left which did not come to its end: they cost, and nobody sees them. Those of other names in the bucket are
    /// somebody else's, who may be at work.
    pub fn give_up_parts(&self) -> Result<(), BucketError> {
        let catalogs = format!("{}{}.", self.place.prefix, Role::Catalog.word());
        let mut request = Request::new(Method::GET, None);
        request.query = vec![("uploads", ""), ("prefix", catalogs.as_str())];
        let page = self.ask(&request)?.text();
        let keys = answer::texts(&page, "Key");
        for (key, id) in keys.iter().zip(answer::texts(&page, "UploadId")) {
            let name = key.strip_prefix(self.place.prefix.as_str());
            if let Some(name) = name.filter(|name| is_ours(name)) {
                self.give_up(name, &id)?;
            }
        }
        Ok(())
    }
}
