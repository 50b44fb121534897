//! The agent's own state: what it says, what it does when it is told something, and when it looks around. It knows no port and no clock.
//!
//! ```text
//!               Welcome                      the branch goes
//!   Greeting ─────────────► Welcomed ◄──────────────────────┐
//!      ▲  Hello, again and again │ Report at each change     │ Hello, Welcome
//!      └─────────────────────────┴───────────────────────────┘
//! ```
//!
//! A file system that it froze goes on when it is told so, or when the time is over, whatever the branch does: while it is frozen the agent does nothing
//! else, so that nothing holds that up. Times are milliseconds of a clock that only goes forward.

use branch_guest::{
    Done, FREEZE_MS_MAX, FromGuest, Health, Hello, Id, OLDEST_PROTOCOL, Order, PROTOCOL,
    PROTOCOL_CLONES, Reason, Report, TROUBLES_MAX, Text, ToGuest, UserVolume, VolumeReport,
    Welcome, What,
};

use crate::root::Root;
use crate::tools::{SHORT, Tools};
use crate::{health, identity, network, reason, sessions, volume};

/// Between two greetings that nobody answers.
const HELLO_EVERY_MS: u64 = 2_000;
/// The same where the branch speaks no common protocol: it may be upgraded.
const REFUSED_EVERY_MS: u64 = 60_000;
/// Between two looks at who is there.
const LOOK_EVERY_MS: u64 = 2_000;
/// Between two looks at services, which cost a process.
const UNITS_EVERY_MS: u64 = 60_000;
/// Between two reports that say the same, by which a branch knows that we live.
const REPORT_EVERY_MS: u64 = 30_000;
/// How long people wait for the branch before they may log on without their volume.
const PATIENCE_MS: u64 = 30_000;
/// How often what is frozen is told to go on when the first time fails, and between two times. One that somebody else let go fails as well.
const THAWS: u32 = 10;
const THAW_EVERY_MS: u64 = 1_000;

/// What never changes while it runs.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where the user volume is mounted.
    pub place: String,
    /// This program's version.
    pub version: String,
}

/// See the module.
pub struct Agent<T> {
    root: Root,
    tools: T,
    settings: Settings,
    boot: Id,
    is_welcomed: bool,
    hello_ms: Option<u64>,
    hello_every_ms: u64,
    /// Whether it was welcomed or refused since it began.
    was_answered: bool,
    /// Whom it was told to be since it began.
    told: Option<Id>,
    wanted: Option<UserVolume>,
    volume: VolumeReport,
    identity_trouble: Option<Reason>,
    network_trouble: Option<Reason>,
    /// The machine id that it was told, if it became whom it was told to be.
    itself: Option<Id>,
    /// What is spoken with the branch.
    protocol: u16,
    booted: bool,
    failed_units: Vec<Text<100>>,
    units_trouble: Option<Reason>,
    units_ms: Option<u64>,
    looked_ms: Option<u64>,
    reported: Option<(Report, u64)>,
    /// Until when the user volume is frozen.
    frozen_until_ms: Option<u64>,
    /// How often its end is tried again where that fails.
    thaws_left: u32,
}

impl<T: Tools> Agent<T> {
    /// An agent that nobody knows yet. A file system that a former one left frozen goes on.
    pub fn new(root: Root, tools: T, settings: Settings) -> Self {
        let boot = root.line("/proc/sys/kernel/random/boot_id");
        let boot = boot.and_then(|id| id.replace('-', "").parse().ok());
        let no_boot = Id::new([0xff; 16]).expect("not zero");
        let mut agent = Self {
            root,
            tools,
            settings,
            boot: boot.unwrap_or(no_boot),
            is_welcomed: false,
            hello_ms: None,
            hello_every_ms: HELLO_EVERY_MS,
            was_answered: false,
            told: None,
            wanted: None,
            volume: VolumeReport::None,
            identity_trouble: None,
            network_trouble: None,
            itself: None,
            protocol: OLDEST_PROTOCOL,
            booted: false,
            failed_units: Vec::new(),
            units_trouble: None,
            units_ms: None,
            looked_ms: None,
            reported: None,
            frozen_until_ms: None,
            thaws_left: 0,
        };
        // Fails as a rule, because it is not frozen.
        let _ = agent.thaw_place();
        agent
    }

    /// Whether people may log on: the branch has said who the desktop is, or was waited for long enough.
    pub fn is_settled(&self, now_ms: u64) -> bool {
        self.was_answered || now_ms >= PATIENCE_MS
    }

    /// Nobody is at the other end: who comes there is greeted.
    pub fn branch_went(&mut self) {
        self.is_welcomed = false;
        self.hello_ms = None;
        self.hello_every_ms = HELLO_EVERY_MS;
        self.reported = None;
    }

    /// Milliseconds until [`Self::tick`] has something to do.
    pub fn rests_ms(&self, now_ms: u64) -> u64 {
        let next = if let Some(until) = self.frozen_until_ms {
            until
        } else if self.is_welcomed {
            self.looked_ms.map_or(now_ms, |at| at + LOOK_EVERY_MS)
        } else {
            self.hello_ms.map_or(now_ms, |at| at + self.hello_every_ms)
        };
        next.saturating_sub(now_ms)
    }

    /// Does what is due, and answers what is to be said.
    pub fn tick(&mut self, now_ms: u64) -> Option<FromGuest> {
        if let Some(until) = self.frozen_until_ms {
            if now_ms >= until {
                let _ = self.end_freeze(now_ms);
            }
            return None;
        }
        if !self.is_welcomed {
            return self.greet(now_ms);
        }
        if self.looked_ms.is_some_and(|at| now_ms < at + LOOK_EVERY_MS) {
            return None;
        }
        self.looked_ms = Some(now_ms);
        let report = self.look(now_ms);
        let is_news = self
            .reported
            .as_ref()
            .is_none_or(|(before, at)| *before != report || now_ms >= at + REPORT_EVERY_MS);
        if !is_news {
            return None;
        }
        self.reported = Some((report.clone(), now_ms));
        Some(FromGuest::Report(report))
    }

    /// What was said last did not reach the port.
    pub fn was_not_sent(&mut self) {
        self.reported = None;
    }

    fn greet(&mut self, now_ms: u64) -> Option<FromGuest> {
        let every = self.hello_every_ms;
        if self.hello_ms.is_some_and(|at| now_ms < at + every) {
            return None;
        }
        self.hello_ms = Some(now_ms);
        Some(FromGuest::Hello(Hello {
            protocol: PROTOCOL,
            oldest: OLDEST_PROTOCOL,
            agent: Text::near(&self.settings.version),
            boot: self.boot,
        }))
    }

    /// Does what the branch says, and answers it.
    pub fn hear(&mut self, message: ToGuest, now_ms: u64) -> Option<FromGuest> {
        match message {
            ToGuest::Welcome(welcome) => {
                self.welcome(welcome, now_ms);
                None
            }
            ToGuest::Refuse(_) => {
                self.is_welcomed = false;
                self.was_answered = true;
                self.hello_every_ms = REFUSED_EVERY_MS;
                None
            }
            // Whoever gives orders has greeted us.
            ToGuest::Do(_) if !self.is_welcomed => None,
            ToGuest::Do(Order { id, what }) => {
                let error = self.carry_out(what, now_ms).err();
                Some(FromGuest::Done(Done { id, error }))
            }
        }
    }

    fn welcome(&mut self, welcome: Welcome, now_ms: u64) {
        if !(OLDEST_PROTOCOL..=PROTOCOL).contains(&welcome.protocol) {
            return;
        }
        // Who greets anew knows of no freeze, and what follows may take long.
        if self.frozen() {
            let _ = self.end_freeze(now_ms);
        }
        let applied = identity::apply(&self.root, &mut self.tools, &welcome.identity);
        self.identity_trouble = applied.err().map(|error| reason(&error));
        let id = welcome.identity.machine_id;
        // Nobody becomes somebody else in one life, but for a machine that goes on as another one's clone. Cards that did not begin anew are told again.
        let is_another = self.told.replace(id).is_some_and(|before| before != id);
        if is_another || self.network_trouble.is_some() {
            let renewed = network::renew(&self.root, &mut self.tools);
            self.network_trouble = renewed.err().map(|error| reason(&error));
        }
        let is_whole = self.identity_trouble.is_none() && self.network_trouble.is_none();
        self.itself = is_whole.then_some(id);
        self.protocol = welcome.protocol;
        self.wanted = welcome.user_volume;
        self.take_up_volume();
        self.is_welcomed = true;
        self.was_answered = true;
        self.looked_ms = None;
        self.reported = None;
    }

    fn take_up_volume(&mut self) {
        let Some(wanted) = &self.wanted else {
            self.volume = VolumeReport::None;
            return;
        };
        // A branch that answered late must not put a folder over the one that somebody works in.
        let is_first = self.volume != VolumeReport::Mounted;
        if is_first && !self.frozen() && !sessions::users(&self.root).is_empty() {
            let mounted = volume::is_mounted(&self.root, &self.settings.place, wanted);
            self.volume = if mounted {
                VolumeReport::Mounted
            } else {
                let why = "somebody logged on before it could be mounted: restart the desktop";
                VolumeReport::Refused(Reason::near(why))
            };
            return;
        }
        let place = &self.settings.place;
        self.volume = volume::take_up(&self.root, &mut self.tools, place, wanted);
    }

    fn frozen(&self) -> bool {
        self.frozen_until_ms.is_some()
    }

    fn carry_out(&mut self, what: What, now_ms: u64) -> Result<(), Reason> {
        match what {
            What::Ping => Ok(()),
            What::Freeze { for_ms } => self.freeze(for_ms, now_ms),
            What::Thaw => self.thaw(now_ms),
            What::ShutDown => self.shut_down(now_ms),
        }
    }

    fn freeze(&mut self, for_ms: u32, now_ms: u64) -> Result<(), Reason> {
        if self.frozen() {
            return Err(Reason::near("it is frozen already"));
        }
        if self.volume != VolumeReport::Mounted {
            return Err(Reason::near("there is no user volume that is mounted"));
        }
        let place = self.settings.place.clone();
        let frozen = self.tools.run("fsfreeze", &["--freeze", &place], SHORT);
        if let Err(error) = frozen {
            // It may be on its way: nothing is to stay frozen that nobody waits for.
            let _ = self.thaw_place();
            return Err(reason(&error));
        }
        self.frozen_until_ms = Some(now_ms + u64::from(for_ms.min(FREEZE_MS_MAX)));
        self.thaws_left = THAWS;
        Ok(())
    }

    fn thaw(&mut self, now_ms: u64) -> Result<(), Reason> {
        if !self.frozen() {
            return Err(Reason::near("it is not frozen: its time was over"));
        }
        self.end_freeze(now_ms)
    }

    fn end_freeze(&mut self, now_ms: u64) -> Result<(), Reason> {
        self.frozen_until_ms = None;
        let thawed = self.thaw_place();
        if thawed.is_err() && self.thaws_left > 0 {
            self.thaws_left -= 1;
            self.frozen_until_ms = Some(now_ms + THAW_EVERY_MS);
        }
        thawed
    }

    fn thaw_place(&mut self) -> Result<(), Reason> {
        let place = self.settings.place.clone();
        let thawed = self.tools.run("fsfreeze", &["--unfreeze", &place], SHORT);
        thawed.map(|_| ()).map_err(|error| reason(&error))
    }

    fn shut_down(&mut self, now_ms: u64) -> Result<(), Reason> {
        // What is to be written must not wait for a file system that stands still.
        if self.frozen() {
            let _ = self.end_freeze(now_ms);
        }
        let has_systemd = self.root.exists("/run/systemd/system");
        let ended = if has_systemd {
            self.tools
                .run("systemctl", &["--no-block", "poweroff"], SHORT)
        } else {
            self.tools.run("poweroff", &[], SHORT)
        };
        ended.map(|_| ()).map_err(|error| reason(&error))
    }

    fn look(&mut self, now_ms: u64) -> Report {
        if self.volume == VolumeReport::Missing {
            self.take_up_volume();
        }
        if !self.booted {
            self.booted = health::is_booted(&self.root, &mut self.tools);
        }
        if self.booted && self.units_ms.is_none_or(|at| now_ms >= at + UNITS_EVERY_MS) {
            self.units_ms = Some(now_ms);
            match health::failed_units(&self.root, &mut self.tools) {
                Ok(units) => (self.failed_units, self.units_trouble) = (units, None),
                Err(error) => self.units_trouble = Some(reason(&error)),
            }
        }
        let mut places = vec!["/"];
        if self.volume == VolumeReport::Mounted {
            places.push(&self.settings.place);
        }
        let disks = health::disks(&self.root, &mut self.tools, &places);
        let troubles = [
            &self.identity_trouble,
            &self.network_trouble,
            &self.units_trouble,
        ];
        let troubles = troubles.into_iter().flatten().take(TROUBLES_MAX);
        Report {
            booted: self.booted,
            users: sessions::users(&self.root),
            user_volume: self.volume.clone(),
            health: Health {
                disks,
                failed_units: self.failed_units.clone(),
                troubles: troubles.cloned().collect(),
            },
            // Earlier branches refuse what they do not know.
            itself: self.itself.filter(|_| self.protocol >= PROTOCOL_CLONES),
        }
    }
}

#[cfg(test)]
mod tests;
