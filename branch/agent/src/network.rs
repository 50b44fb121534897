//! Network cards of a desktop that goes on as a clone of another one.
//!
//! Its driver has read the hardware address of the desktop that it was, and whoever asks for network addresses has an id that was made of the machine's id
//! of then. So the driver lets go of each card and takes it again, with the address that the card has now, and in between the services that ask
//! for addresses begin anew. The branch puts the cable in after that. Nothing is done to cards of other drivers: our machines have none.

use std::io;

use crate::root::Root;
use crate::tools::{SHORT, Tools};

const DRIVER: &str = "/sys/bus/virtio/drivers/virtio_net";
/// Patterns, because one of them is on a system as a rule, and a pattern that matches none is no error.
const SERVICES: [&str; 2] = ["systemd-networkd.servic[e]", "NetworkManager.servic[e]"];

/// Why a card may still have another desktop's address.
#[derive(Debug, thiserror::Error)]
#[error("network card {card}: its driver does not {step} it")]
pub struct NetworkError {
    card: String,
    step: &'static str,
    source: io::Error,
}

/// Has all network cards begin anew.
///
/// # Errors
/// The first card that did not; the others did.
pub fn renew(root: &Root, tools: &mut dyn Tools) -> Result<(), NetworkError> {
    let names = root.names(DRIVER);
    let cards: Vec<String> = names.into_iter().filter(|name| is_device(name)).collect();
    if cards.is_empty() {
        return Ok(());
    }
    let all = |file: &str, step: &'static str| {
        let results = cards.iter().map(|card| {
            let told = root.tell(&format!("{DRIVER}/{file}"), card);
            told.map_err(|source| NetworkError {
                card: card.clone(),
                step,
                source,
            })
        });
        // Each of them is told, whatever becomes of the others.
        results.fold(Ok(()), Result::and)
    };
    let let_go = all("unbind", "let go of");
    if root.exists("/run/systemd/system") {
        // One that fails is among the failed services that are reported.
        let _ = tools.run(
            "systemctl",
            &["try-restart", SERVICES[0], SERVICES[1]],
            SHORT,
        );
    }
    let taken = all("bind", "take");
    let_go.and(taken)
}

/// Whether a name in the driver's folder is a device's: `virtio` and a number.
fn is_device(name: &str) -> bool {
    let number = name.strip_prefix("virtio").unwrap_or_default();
    !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, missing_docs)]
    use super::*;
    use crate::fake::FakeTools;

    #[test]
    fn each_card_is_let_go_and_taken_with_services_anew_in_between() {
        let folder = tempfile::tempdir().unwrap();
        let root = Root::new(folder.path());
        let mut tools = FakeTools::default();
        renew(&root, &mut tools).unwrap();
        assert_eq!(tools.take(), [""; 0], "no card, nothing to do");
        for name in ["virtio3", "bind", "unbind", "module", "uevent"] {
            root.write(&format!("{DRIVER}/{name}"), "", 0o644).unwrap();
        }
        root.write("/run/systemd/system/x", "", 0o644).unwrap();
        renew(&root, &mut tools).unwrap();
        assert_eq!(
            tools.take(),
            ["systemctl try-restart systemd-networkd.servic[e] NetworkManager.servic[e]"]
        );
        for file in ["unbind", "bind"] {
            let told = root.text(&format!("{DRIVER}/{file}")).unwrap();
            assert_eq!(told, "virtio3");
        }
        root.remove(&format!("{DRIVER}/bind")).unwrap();
        let error = renew(&root, &mut tools).unwrap_err();
        assert_eq!(
            error.to_string(),
            "network card virtio3: its driver does not take it"
        );
    }
}
