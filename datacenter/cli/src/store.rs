//! `splice store`.

use clap::Subcommand;

use crate::backup;
use crate::config::Context;
use crate::failure::Failure;

/// What can be done with what the datacenter keeps.
#[derive(Subcommand)]
pub enum Verb {
    /// Back up the datacenter into a folder of its host, while it works.
    ///
    /// Realm, catalog and packs are copied so that they fit together; publishing and fetching go on. Packs that are in the folder already are
    /// not copied again. A backup that is interrupted leaves the one before as it was; running it again goes on. The keys stay sealed, and the
    /// passphrase that opens them is never copied: keep one elsewhere, nothing can be restored without it.
    #[command(after_help = "Examples:
  splice store backup /mnt/backup/splice
  splice store backup /mnt/backup/splice --verify
  splice-datacenter restore /mnt/backup/splice --data /var/lib/splice --passphrase-file /media/usb/passphrase")]
    Backup(backup::Arguments),
}

/// Does it.
pub async fn run(context: &Context, verb: Verb) -> Result<(), Failure> {
    match verb {
        Verb::Backup(arguments) => backup::run(context, arguments).await,
    }
}
