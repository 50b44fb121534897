//! A folder that is there whole or not at all.
//!
//! It is filled under another name beside its own, everything in it is synced, and then it gets its name; the folder around it is synced
//! last. Whatever moment the power goes, there is either no folder of that name or all of it. What a broken-off attempt left is removed
//! by the next one, unless it is whole and only lacks its name; nobody takes it for a snapshot, because its name is another.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// Only its owner: a guest's memory has its secrets.
const MODE: u32 = 0o700;

/// Why there is no folder.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// Its place.
    #[error("{} is no name for a new folder", .0.display())]
    Name(PathBuf),
    /// Taken.
    #[error("{} is there already: remove it, or choose another name", .0.display())]
    Exists(PathBuf),
    /// Whoever made it was ended in the last moment.
    #[error("{} is whole and never got its name: rename it to what it should be called, or remove it", .0.display())]
    Left(PathBuf),
    /// The disk.
    #[error("{step} {}", .path.display())]
    Io {
        /// What was tried.
        step: &'static str,
        /// With what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

fn failed<'a>(step: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> FolderError + 'a {
    move |source| FolderError::Io {
        step,
        path: path.to_owned(),
        source,
    }
}

/// Where a folder is filled before it has its name.
fn partial(dir: &Path) -> Option<PathBuf> {
    let mut name = dir.file_name()?.to_owned();
    name.push(".partial");
    Some(dir.with_file_name(name))
}

fn sync_folder(path: &Path) -> Result<(), FolderError> {
    let synced = File::open(path).and_then(|folder| folder.sync_all());
    synced.map_err(failed("sync", path))
}

/// Makes the folder `dir`, which is not there yet; `fill` puts files into the path that it is given, each synced by itself. `is_whole`
/// says whether there is anything that somebody may still want in the one that a broken-off attempt left.
///
/// # Errors
/// It is there, or `fill` fails, and nothing is left then; or the disk fails when all was in it, and it keeps its other name.
pub fn create<E: From<FolderError>>(
    dir: &Path,
    is_whole: impl FnOnce(&Path) -> bool,
    fill: impl FnOnce(&Path) -> Result<(), E>,
) -> Result<(), E> {
    let partial = partial(dir).ok_or_else(|| FolderError::Name(dir.to_owned()))?;
    if fs::symlink_metadata(dir).is_ok() {
        return Err(FolderError::Exists(dir.to_owned()).into());
    }
    if is_whole(&partial) {
        return Err(FolderError::Left(partial).into());
    }
    match fs::remove_dir_all(&partial) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(failed("remove what is left of", &partial)(error).into());
        }
        _ => {}
    }
    let made = DirBuilder::new().mode(MODE).create(&partial);
    made.map_err(failed("make", &partial))?;
    if let Err(error) = fill(&partial) {
        let _ = fs::remove_dir_all(&partial);
        return Err(error);
    }
    sync_folder(&partial)?;
    fs::rename(&partial, dir).map_err(failed("name", dir))?;
    let around = dir.parent().filter(|around| !around.as_os_str().is_empty());
    Ok(sync_folder(around.unwrap_or(Path::new(".")))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn never(_: &Path) -> bool {
        false
    }

    #[test]
    fn a_folder_is_there_when_it_is_whole() {
        let temp = tempfile::tempdir().expect("a folder");
        let dir = temp.path().join("one");
        let fill = |path: &Path| {
            assert!(!dir.exists());
            fs::write(path.join("file"), "x").map_err(failed("write", path))
        };
        create(&dir, never, fill).expect("made");
        assert_eq!(fs::read(dir.join("file")).expect("there"), b"x");
        let again = create(&dir, never, |_| Ok::<_, FolderError>(()));
        assert!(matches!(again, Err(FolderError::Exists(_))));
        assert_eq!(fs::read_dir(temp.path()).expect("folder").count(), 1);
    }

    #[test]
    fn an_attempt_that_fails_leaves_nothing_and_one_that_broke_off_is_in_nobodys_way() {
        let temp = tempfile::tempdir().expect("a folder");
        let dir = temp.path().join("one");
        let broken = create(&dir, never, |path| {
            fs::write(path.join("half"), "x").expect("written");
            Err(FolderError::Name(PathBuf::new()))
        });
        assert!(broken.is_err());
        assert_eq!(fs::read_dir(temp.path()).expect("folder").count(), 0);
        // As a process that was killed leaves it.
        fs::create_dir(temp.path().join("one.partial")).expect("made");
        fs::write(temp.path().join("one.partial/half"), "x").expect("written");
        let whole = create(
            &dir,
            |path| path.join("half").exists(),
            |_| Ok::<_, FolderError>(()),
        );
        assert!(matches!(whole, Err(FolderError::Left(_))));
        create(&dir, never, |_| Ok::<_, FolderError>(())).expect("made");
        assert_eq!(fs::read_dir(&dir).expect("folder").count(), 0);
        assert_eq!(fs::read_dir(temp.path()).expect("folder").count(), 1);
        let nameless = create(Path::new("/"), never, |_| Ok::<_, FolderError>(()));
        assert!(matches!(nameless, Err(FolderError::Name(_))));
    }
}
