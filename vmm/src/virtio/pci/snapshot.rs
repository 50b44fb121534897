//! A device that comes to rest, is saved or takes up a state, and works again.

use super::{DRIVER_OK, FEATURES_OK, NEEDS_RESET, VirtioPci, WHILE_IT_RUNS};
use crate::machine::interrupts::InterruptError;
use crate::pci::Function;
use crate::virtio::state::{DeviceStateError, QueueState, TransportState};

impl VirtioPci {
    /// Has the device come to rest, for a snapshot; its queues are here again. To be called when no processor runs.
    pub fn suspend(&mut self) {
        if !self.is_started {
            return;
        }
        let rings = self.device_mut().stop();
        for ring in rings.into_iter().flatten() {
            if let Some(setup) = self.queues.get_mut(ring.index()) {
                setup.queue = ring.into_queue();
            }
        }
    }

    /// Has the device work again, if it did. An interrupt may have been lost on the way to a processor that was being saved: the driver
    /// looks at all its queues.
    pub fn go_on(&mut self) {
        let is_at_work =
            self.status & (FEATURES_OK | DRIVER_OK | NEEDS_RESET) == FEATURES_OK | DRIVER_OK;
        if self.is_started && is_at_work {
            self.hand_out();
            for index in 0..self.queues.len() {
                self.interrupt.queue(index);
            }
        }
    }

    /// The state of a device that is suspended.
    ///
    /// # Errors
    /// It cannot be saved now.
    pub fn save(&self) -> Result<TransportState, DeviceStateError> {
        Ok(TransportState {
            name: self.name.clone(),
            kind: self.device().kind() as u16,
            config: self.config.bytes().to_vec(),
            table: self.msix.table(),
            pending: self.msix.pending(),
            vectors: self.interrupt.vectors(),
            generation: self.interrupt.generation(),
            status: self.status,
            driver_features: self.driver_features,
            feature_page: self.feature_page,
            queue_select: self.queue_select,
            is_started: self.is_started,
            queues: self
                .queues
                .iter()
                .map(|setup| QueueState::of(&setup.queue))
                .collect(),
            device: self.device().save(&self.memory)?,
        })
    }

    /// Takes its registers off the bus, until [`VirtioPci::restore`] puts them where they were: devices may have changed places.
    ///
    /// # Errors
    /// KVM refuses.
    pub fn lift(&mut self) -> Result<(), InterruptError> {
        let Some(bar) = self.mapped.take() else {
            return Ok(());
        };
        if let Some(bus) = self.bus.upgrade() {
            bus.remove(bar);
        }
        self.notifications(bar, false)
    }

    /// Takes up a state; the device works from [`VirtioPci::go_on`] on.
    ///
    /// # Errors
    /// It is of another device.
    pub fn restore(&mut self, state: TransportState) -> Result<(), DeviceStateError> {
        self.check(&state)?;
        for (setup, saved) in self.queues.iter_mut().zip(&state.queues) {
            setup.queue = saved.queue(setup.size_max)?;
        }
        self.device
            .as_deref_mut()
            .expect(WHILE_IT_RUNS)
            .restore(state.device, &self.memory)?;
        self.status = state.status;
        self.driver_features = state.driver_features;
        self.feature_page = state.feature_page;
        self.queue_select = state.queue_select;
        self.is_started = state.is_started;
        self.interrupt.set_generation(state.generation);
        let slots = std::iter::once(None).chain((0..).map(Some));
        for (slot, vector) in slots.zip(state.vectors) {
            self.interrupt.set_vector(slot, vector);
        }
        for (vector, pending) in self.msix.vectors().zip(state.pending) {
            if pending {
                let _ = vector.event().write(1);
            }
        }
        self.msix.restore(&state.table);
        // The guest's bits of it; the others are what the device is.
        self.write_config(0, &state.config);
        Ok(())
    }

    /// Whether it is of a device like this one.
    fn check(&self, state: &TransportState) -> Result<(), DeviceStateError> {
        let differs = |what: String| Err(DeviceStateError::Differs(what));
        let kind = self.device().kind() as u16;
        if state.kind != kind {
            return differs(format!(
                "it was a virtio device of kind {}, now {kind}",
                state.kind
            ));
        }
        let queues = (state.queues.len(), self.queues.len());
        if queues.0 != queues.1 {
            return differs(format!("it had {} queues, now {}", queues.0, queues.1));
        }
        // Before they are agreed on, a driver may have written any.
        let lost = state.driver_features & !self.features();
        if state.status & FEATURES_OK != 0 && lost != 0 {
            return differs(format!("it lacks features that the guest uses: {lost:#x}"));
        }
        Ok(())
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }
}
