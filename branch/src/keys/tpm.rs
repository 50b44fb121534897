//! A secret sealed to this machine's TPM 2.0, by the programs of Debian's package tpm2-tools.
//!
//! The secret is bound to PCR 7, which holds whether and with whose keys the machine booted securely. It survives kernel updates, and not a
//! boot from somebody else's stick where secure boot is on. The key above it is made anew from the TPM's own seed each time, so nothing is
//! kept inside. What comes back from the TPM is useless outside it, and lies in the branch key's file.
//!
//! Secrets go through pipes only. Which TPM is asked is the programs' own choice (`TPM2TOOLS_TCTI`), which is how tests use swtpm.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use zeroize::Zeroizing;

/// What the secret is bound to.
const PCRS: &str = "sha256:7";
/// Attributes of the sealed object: it stays in this TPM, and nothing but the policy opens it. Without `userwithauth`, because an empty
/// password would be enough otherwise.
const ATTRIBUTES: &str = "fixedtpm|fixedparent";
/// Longest answer that is read from a program.
const ANSWER_BYTES_MAX: u64 = 64 << 10;

/// Why the TPM did not do it.
#[derive(Debug, thiserror::Error)]
pub enum TpmError {
    /// A program is missing.
    #[error("{program} is not installed; install Debian's package tpm2-tools")]
    NoTools {
        /// Which.
        program: String,
    },
    /// A program could not be run, or its files not be made.
    #[error("{program}")]
    Io {
        /// What was being done.
        program: String,
        /// Why.
        source: std::io::Error,
    },
    /// The TPM said no.
    #[error(
        "{program}: {message}; if the machine's secure boot has changed, put the branch key's copy back and protect it anew"
    )]
    Refused {
        /// Which program.
        program: String,
        /// Its last words.
        message: String,
    },
}

/// What a TPM made of a secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sealed {
    public: Vec<u8>,
    private: Vec<u8>,
}

impl Sealed {
    /// Both parts, the first behind its length.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = (self.public.len() as u32).to_le_bytes().to_vec();
        out.extend_from_slice(&self.public);
        out.extend_from_slice(&self.private);
        out
    }

    /// Reads them back.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (len, rest) = bytes.split_first_chunk::<4>()?;
        let (public, private) = rest.split_at_checked(u32::from_le_bytes(*len) as usize)?;
        Some(Self {
            public: public.to_vec(),
            private: private.to_vec(),
        })
    }
}

/// Seals `secret`.
pub fn seal(secret: &[u8; 32]) -> Result<Sealed, TpmError> {
    let dir = Scratch::new()?;
    primary(&dir)?;
    let policy = dir.file("policy");
    run(
        "tpm2_createpolicy",
        &["-Q", "--policy-pcr", "-l", PCRS, "-L", &policy],
        &[],
    )?;
    let (public, private) = (dir.file("public"), dir.file("private"));
    let parent = dir.file("primary");
    run(
        "tpm2_create",
        &[
            "-Q", "-C", &parent, "-L", &policy, "-a", ATTRIBUTES, "-i", "-", "-u", &public, "-r",
            &private,
        ],
        secret,
    )?;
    Ok(Sealed {
        public: read(&public)?,
        private: read(&private)?,
    })
}

/// The secret, if this is the TPM that sealed it and the machine's state is the same.
pub fn unseal(sealed: &Sealed) -> Result<Zeroizing<[u8; 32]>, TpmError> {
    let dir = Scratch::new()?;
    primary(&dir)?;
    let (public, private) = (dir.file("public"), dir.file("private"));
    write(&public, &sealed.public)?;
    write(&private, &sealed.private)?;
    let (parent, object) = (dir.file("primary"), dir.file("object"));
    run(
        "tpm2_load",
        &[
            "-Q", "-C", &parent, "-u", &public, "-r", &private, "-c", &object,
        ],
        &[],
    )?;
    let policy = format!("pcr:{PCRS}");
    let answer = run("tpm2_unseal", &["-c", &object, "-p", &policy], &[])?;
    flush();
    let mut secret = Zeroizing::new([0u8; 32]);
    if answer.len() != secret.len() {
        return Err(TpmError::Refused {
            program: "tpm2_unseal".into(),
            message: format!("it gave {} bytes", answer.len()),
        });
    }
    secret.copy_from_slice(&answer);
    Ok(secret)
}

/// Makes the key above, the same each time.
fn primary(dir: &Scratch) -> Result<(), TpmError> {
    flush();
    let context = dir.file("primary");
    run(
        "tpm2_createprimary",
        &["-Q", "-C", "o", "-G", "ecc", "-c", &context],
        &[],
    )
    .map(drop)
}

/// A TPM without a resource manager has room for three objects, and its programs leave theirs there.
fn flush() {
    let _ = run("tpm2_flushcontext", &["-t"], &[]);
}

fn run(program: &str, arguments: &[&str], input: &[u8]) -> Result<Zeroizing<Vec<u8>>, TpmError> {
    let io = |source: std::io::Error| {
        let program = program.to_owned();
        if source.kind() == std::io::ErrorKind::NotFound {
            TpmError::NoTools { program }
        } else {
            TpmError::Io { program, source }
        }
    };
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(io)?;
    // 32 bytes fit into any pipe; a program that does not want them closes it.
    let fed = child.stdin.take().map(|mut pipe| pipe.write_all(input));
    let mut answer = Zeroizing::new(Vec::with_capacity(4096));
    if let Some(pipe) = child.stdout.take() {
        pipe.take(ANSWER_BYTES_MAX)
            .read_to_end(&mut answer)
            .map_err(io)?;
    }
    let mut words = String::new();
    if let Some(pipe) = child.stderr.take() {
        let _ = pipe.take(ANSWER_BYTES_MAX).read_to_string(&mut words);
    }
    let status = child.wait().map_err(io)?;
    if status.success() && fed.is_none_or(|fed| fed.is_ok()) {
        return Ok(answer);
    }
    Err(TpmError::Refused {
        program: program.to_owned(),
        message: words.lines().last().unwrap_or("no reason given").to_owned(),
    })
}

fn read(path: &str) -> Result<Vec<u8>, TpmError> {
    std::fs::read(path).map_err(|source| TpmError::Io {
        program: path.to_owned(),
        source,
    })
}

fn write(path: &str, content: &[u8]) -> Result<(), TpmError> {
    std::fs::write(path, content).map_err(|source| TpmError::Io {
        program: path.to_owned(),
        source,
    })
}

/// A directory of our own for what the programs hand each other: nothing secret.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Result<Self, TpmError> {
        use std::os::unix::fs::DirBuilderExt;
        let name = format!("splice-tpm-{:032x}", rand::random::<u128>());
        let path = std::env::temp_dir().join(name);
        std::fs::DirBuilder::new()
            .mode(0o700)
            .create(&path)
            .map_err(|source| TpmError::Io {
                program: path.display().to_string(),
                source,
            })?;
        Ok(Self(path))
    }

    fn file(&self, name: &str) -> String {
        Path::new(&self.0).join(name).display().to_string()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
