//! Networks of desktops: none, the branch's own NAT, or a bridge of somebody else's.
//!
//! ```text
//!  desktop ── tap, one for each machine, handed in as a descriptor ──┬── bridge of the NAT ── rules ── what the host reaches
//!             (gone with the machine, however that ends)             │     └─ dnsmasq: DHCP and names
//!                                                                    └── a bridge that is there
//! ```
//!
//! Everything has a name that follows from the settings ([`subnet`]), so that setting it up is the same as mending it: what is there is used,
//! what is not is made, and rules are replaced as a whole ([`rules`]). Nothing of it needs an end that comes in order. Invariant: a bridge
//! that we have not made is never changed, beyond having taps at it; rules of others are neither read nor changed. The NAT stays when the
//! branch server ends, as machines do, and goes when one starts that has no pool for it.
//!
//! Refused: to run a desktop without the network that its pool has.

pub mod choice;
mod dnsmasq;
mod host;
mod rules;
pub mod subnet;
mod tap;

use std::collections::BTreeSet;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

pub use choice::{Choice, Settings};
use dnsmasq::Dnsmasq;
use subnet::Subnet;

/// How often the NAT is looked at while there is one: administrators reload their own rules, and that may take ours away.
const TEND_EVERY: Duration = Duration::from_secs(30);
/// What the file begins with that names the NAT's bridge.
const MADE: &str = "splice-nat 1 ";

/// Why a desktop has no network.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// A program is not there.
    #[error("{program} is not installed; install Debian's package {package}")]
    NoProgram {
        /// Its name.
        program: &'static str,
        /// Where it is from.
        package: &'static str,
    },
    /// A program said no.
    #[error("`{line}` says: {said}")]
    Refused {
        /// What was run.
        line: String,
        /// Its words.
        said: String,
    },
    /// The NAT's name is somebody else's.
    #[error(
        "there is an interface {0} that this branch server has not made; name another one with --nat-bridge"
    )]
    Foreign(String),
    /// The bridge that was chosen is not there.
    #[error(
        "there is no bridge {0} on this host; make it, or choose another network (--network, --pool-network)"
    )]
    NoBridge(String),
    /// The NAT has another name now, and machines are at the one of before.
    #[error(
        "desktops still run at the bridge {0} of before; stop them, then start the branch server again"
    )]
    InUse(String),
    /// No address is left.
    #[error("no address of {0} is left; delete desktops, or give a larger --nat-subnet")]
    Full(Subnet),
    /// The tap.
    #[error("tap {name}")]
    Tap {
        /// Its name.
        name: String,
        /// Why not.
        source: io::Error,
    },
    /// DHCP and names.
    #[error("dnsmasq does not serve desktops: {log}")]
    Dnsmasq {
        /// Its last words.
        log: String,
    },
    /// A file.
    #[error("{what}")]
    Io {
        /// What was tried.
        what: String,
        /// Why not.
        source: io::Error,
    },
}

/// A desktop's network card, before its machine is there.
#[derive(Debug, Clone)]
pub struct Card {
    /// The host's end. Gone when the last copy is closed.
    pub tap: Arc<OwnedFd>,
    /// Its hardware address.
    pub mac: [u8; 6],
    /// Where it is, as it is told.
    pub told: String,
}

impl Card {
    /// Its hardware address as text.
    pub fn mac_text(&self) -> String {
        subnet::mac_text(self.mac)
    }
}

/// Who a card is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner {
    /// The desktop's own random id.
    pub id: [u8; 16],
    /// Its address behind the NAT, if it has one.
    pub address: Option<Ipv4Addr>,
}

/// See the module.
pub struct Network {
    settings: Settings,
    /// Names the bridge that this branch server has made.
    made: PathBuf,
    /// A folder for each NAT's dnsmasq.
    run: PathBuf,
    /// When the NAT was looked at last. Held while it is set up.
    looked: Mutex<Option<Instant>>,
}

impl Network {
    /// Networks as `settings` say, kept in mind in the folder `data`; processes have their files below `run`.
    pub fn new(settings: Settings, data: &Path, run: &Path) -> Self {
        Self {
            settings,
            made: data.join("nat"),
            run: run.to_owned(),
            looked: Mutex::default(),
        }
    }

    /// The choice for a pool.
    pub fn choice(&self, pool: &str) -> &Choice {
        self.settings.of(pool)
    }

    /// An address behind the NAT that no other desktop has: `had`, if it still is one.
    ///
    /// # Errors
    /// None is left.
    pub fn address(
        &self,
        had: Option<Ipv4Addr>,
        others: &BTreeSet<Ipv4Addr>,
    ) -> Result<Ipv4Addr, NetworkError> {
        let subnet = self.settings.nat_subnet;
        subnet.give(had, others).ok_or(NetworkError::Full(subnet))
    }

    fn looked(&self) -> MutexGuard<'_, Option<Instant>> {
        self.looked.lock().expect("no panic under this lock")
    }

    fn dnsmasq(&self, bridge: &str) -> Dnsmasq {
        Dnsmasq::new(self.run.join(bridge))
    }

    fn failed(&self, what: &str) -> impl Fn(io::Error) -> NetworkError + use<> {
        let what = format!("{what} {}", self.made.display());
        move |source| NetworkError::Io {
            what: what.clone(),
            source,
        }
    }

    /// The bridge that was made before, here or by an earlier server of this branch.
    fn made(&self) -> Result<Option<String>, NetworkError> {
        match std::fs::read_to_string(&self.made) {
            Ok(text) => Ok(text.strip_prefix(MADE).map(|name| name.trim().to_owned())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(self.failed("read")(error)),
        }
    }

    /// Sets the NAT up, or mends it, if a pool may need it, and takes away one that no pool needs. `in_use`: machines of before are at one.
    ///
    /// # Errors
    /// See [`NetworkError`]; to be tried again when a desktop starts.
    pub fn prepare(&self, in_use: bool) -> Result<(), NetworkError> {
        let mut looked = self.looked();
        let made = self.made()?;
        let wanted = self.settings.has_nat().then_some(&self.settings.nat_bridge);
        if let Some(before) = made
            && wanted != Some(&before)
        {
            match (in_use, wanted) {
                (true, Some(_)) => return Err(NetworkError::InUse(before)),
                // They keep what they have until they end.
                (true, None) => return Ok(()),
                (false, _) => self.remove(&before)?,
            }
        }
        if wanted.is_some() {
            // Rules are those of this program, whichever put them in force before.
            self.set_up()?;
            *looked = Some(Instant::now());
        }
        Ok(())
    }

    /// Mends the NAT if something of it is gone. To be called about every second.
    pub fn tend(&self) {
        let mut looked = self.looked();
        if looked.is_none_or(|looked| looked.elapsed() < TEND_EVERY) {
            return;
        }
        *looked = Some(Instant::now());
        if !self.is_up() {
            tracing::warn!(
                bridge = self.settings.nat_bridge,
                "the network of desktops was changed by somebody; it is set up again"
            );
            if let Err(error) = self.set_up() {
                let error = &error as &dyn std::error::Error;
                tracing::error!(error, "the network of desktops is not up");
            }
        }
    }

    fn is_up(&self) -> bool {
        let Settings {
            nat_bridge,
            nat_subnet,
            ..
        } = &self.settings;
        let address = nat_subnet.gateway_with_prefix();
        host::interface(nat_bridge).is_some_and(|bridge| bridge.addresses == [address])
            && host::has_tables(&rules::table(nat_bridge))
            && self.dnsmasq(nat_bridge).serves(nat_bridge, *nat_subnet)
    }

    /// Whatever of it is there.
    fn set_up(&self) -> Result<(), NetworkError> {
        let (bridge, subnet) = (&self.settings.nat_bridge, self.settings.nat_subnet);
        for program in ["ip", "nft", "dnsmasq"] {
            host::program(program)?;
        }
        let made = self.made()?;
        let is_ours = made.as_ref() == Some(bridge);
        if let Some(before) = made
            && !is_ours
        {
            return Err(NetworkError::InUse(before));
        }
        let found = host::interface(bridge);
        match &found {
            Some(found) if !found.is_bridge || !is_ours => {
                return Err(NetworkError::Foreign(bridge.clone()));
            }
            Some(_) => {}
            None => {
                // Before it is there: whatever happens in between, it will be known again.
                let text = format!("{MADE}{bridge}\n");
                std::fs::write(&self.made, text).map_err(self.failed("write"))?;
                host::ip(&format!("link add name {bridge} type bridge"))?;
            }
        }
        // Rules before there is a way for anything.
        host::nft(&rules::ruleset(bridge, subnet))?;
        host::no_ipv6(bridge);
        // Its own, or it would change with the taps at it.
        let mac = subnet::mac_text(subnet::mac_of(subnet.gateway()));
        host::ip(&format!("link set dev {bridge} address {mac}"))?;
        let address = subnet.gateway_with_prefix();
        if found.is_none_or(|found| found.addresses != [address.clone()]) {
            host::ip(&format!("address flush dev {bridge}"))?;
            host::ip(&format!("address add {address} dev {bridge}"))?;
        }
        host::ip(&format!("link set dev {bridge} up"))?;
        if host::forward()? {
            tracing::warn!("net.ipv4.ip_forward is 1 now: the NAT of desktops needs it");
        }
        self.dnsmasq(bridge).serve(bridge, subnet)
    }

    fn remove(&self, bridge: &str) -> Result<(), NetworkError> {
        self.dnsmasq(bridge).remove()?;
        if host::interface(bridge).is_some() {
            host::ip(&format!("link delete dev {bridge}"))?;
        }
        host::nft(&rules::removal(bridge))?;
        std::fs::remove_file(&self.made).map_err(self.failed("remove"))?;
        tracing::info!(bridge, "the NAT of desktops is removed: no pool has it");
        Ok(())
    }

    /// A card for a desktop that is about to start; none if that is the choice.
    ///
    /// # Errors
    /// See [`NetworkError`]; nothing is left then.
    pub fn plug(&self, choice: &Choice, owner: Owner) -> Result<Option<Card>, NetworkError> {
        match (choice, owner.address) {
            (Choice::None, _) => Ok(None),
            (Choice::Bridge(bridge), _) => {
                host::program("ip")?;
                if !host::interface(bridge).is_some_and(|found| found.is_bridge) {
                    return Err(NetworkError::NoBridge(bridge.clone()));
                }
                let [a, b, c, d, ..] = owner.id;
                let name = format!("sb{a:02x}{b:02x}{c:02x}{d:02x}");
                let tap = attach(&name, bridge, false)?;
                Ok(Some(Card {
                    tap: Arc::new(tap),
                    mac: [0x52, 0x54, a, b, c, d],
                    told: choice.to_string(),
                }))
            }
            (Choice::Nat, None) => Err(NetworkError::Full(self.settings.nat_subnet)),
            (Choice::Nat, Some(place)) => {
                let mut looked = self.looked();
                if looked.is_none() || !self.is_up() {
                    self.set_up()?;
                }
                *looked = Some(Instant::now());
                let tap = attach(&subnet::tap_of(place), &self.settings.nat_bridge, true)?;
                Ok(Some(Card {
                    tap: Arc::new(tap),
                    mac: subnet::mac_of(place),
                    told: format!("{choice}, {place}"),
                }))
            }
        }
    }
}

/// A tap at a bridge, up. One that stays apart from others of its kind is told so to the bridge too, which no reload of rules takes away.
fn attach(name: &str, bridge: &str, apart: bool) -> Result<OwnedFd, NetworkError> {
    let tap = tap::make(name).map_err(|source| NetworkError::Tap {
        name: name.to_owned(),
        source,
    })?;
    host::no_ipv6(name);
    host::ip(&format!("link set dev {name} master {bridge}"))?;
    if apart {
        host::ip(&format!(
            "link set dev {name} type bridge_slave isolated on"
        ))?;
    }
    host::ip(&format!("link set dev {name} up"))?;
    Ok(tap)
}
