//! The balloon (virtio 1.2, section 5.5). The host asks for 1 MiB.

use crate::clock;
use crate::memory::{PAGE, Piece};
use crate::queue::{gives, takes};
use crate::report::{Check, Wrong, ensure};
use crate::virtio::{Device, Learns};

const KIND: u32 = 5;
const F_REPORTING: u64 = 1 << 5;
const PAGES: usize = 256;
/// In the configuration: pages that the host wants, and those that it has.
const WANTED_AT: usize = 0;
const GIVEN_AT: usize = 4;

pub fn check(check: &mut Check) -> Result<(), Wrong> {
    for learns in [Learns::Polls, Learns::Interrupted] {
        let device = Device::open(KIND, 0, F_REPORTING, learns)?;
        ensure(device.features() & F_REPORTING != 0, "no reporting", device.features())?;
        let (mut inflate, mut deflate) = (device.queue(0, 8)?, device.queue(1, 8)?);
        let mut report = device.queue(2, 8)?;
        device.begin()?;
        let wanted = clock::wait("a wish", || {
            Some(device.config::<u32>(WANTED_AT)).filter(|wanted| *wanted > 0)
        })?;
        ensure(wanted as usize == PAGES, "another wish", wanted.into())?;

        let pages = Piece::take(PAGES * PAGE);
        let guard = Piece::take(PAGE);
        pages.fill(0x77);
        guard.fill(0x77);
        let numbers = Piece::take(4 * PAGES);
        for page in 0..PAGES {
            // Not all of them in one run.
            let page = if page < 200 { page } else { 455 - page };
            let number = pages.address() as usize / PAGE + page;
            let at = 4 * if page < 200 { page } else { 455 - page };
            numbers.write(at, number as u32);
        }
        inflate.ask(&[gives(numbers, 0, 4 * PAGES)])?;
        device.set_config(GIVEN_AT, PAGES as u32);
        ensure(pages.differs(0, PAGES * PAGE, |_| 0).is_none(), "pages that were given are there", 0)?;
        ensure(guard.differs(0, PAGE, |_| 0x77).is_none(), "a page that was not given is gone", 0)?;
        check.done("inflates");
        deflate.ask(&[gives(numbers, 0, 4 * PAGES)])?;
        device.set_config(GIVEN_AT, 0u32);
        pages.fill(0x55);
        ensure(pages.differs(0, PAGES * PAGE, |_| 0x55).is_none(), "pages that came back do not hold", 0)?;
        check.done("deflates");
        report.ask(&[takes(pages, 0, 16 * PAGE), takes(pages, 32 * PAGE, 16 * PAGE)])?;
        let zero = |page: usize| page < 16 || (32..48).contains(&page);
        let wrong = pages.differs(0, PAGES * PAGE, |at| if zero(at / PAGE) { 0 } else { 0x55 });
        ensure(wrong.is_none(), "other pages than were reported", wrong.unwrap_or(0) as u64)?;
        check.done("reports free pages");
        device.set_config(GIVEN_AT, PAGES as u32);
        device.reset()?;
    }
    Ok(())
}
