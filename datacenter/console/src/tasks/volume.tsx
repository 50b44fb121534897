// What can be done to volumes, their snapshots and their forks. All of it asks for a reason, which the audit log keeps.

import { Alert } from '@patternfly/react-core';

import { call } from '../api/client';
import type { EndedLease, Volume, VolumeFork, VolumeSnapshot } from '../api/schema';
import { ofRollBack } from '../model/loss';
import { many } from '../model/units';
import type { Field, Task } from '../parts/task';
import { text } from '../parts/task';
import { navigate, to } from '../router';
import { EXPORT } from './image';

const REASON: Field = { name: 'reason', label: 'Who does it and why', required: true, help: 'Kept in the audit log' };

const nowS = (): number => Math.floor(Date.now() / 1000);
const why = (values: Parameters<Task['run']>[0]): string => text(values, 'reason') ?? '';
const named = (volume: Volume): string => `${volume.desktop}${volume.kind === 'user' ? ' (user volume)' : ''}`;

export async function snapshot(volume: Volume): Promise<VolumeSnapshot> {
  return call('POST /v1/volumes/{volume}/snapshots', { path: { volume: volume.id } });
}

export function rollBack(volume: Volume, snapshot: VolumeSnapshot, changed: () => void): Task {
  const loss = ofRollBack(volume, snapshot, nowS());
  const [first, ...rest] = loss.sentences;
  return {
    title: `Roll ${named(volume)} back to snapshot ${snapshot.number}`,
    danger: true,
    verb: 'Roll back',
    type: volume.desktop,
    about: (
      <>
        <Alert isInline component="p" variant="warning" title={first} />
        <ul>
          {rest.map((sentence) => (
            <li key={sentence}>{sentence}</li>
          ))}
        </ul>
      </>
    ),
    fields: [
      REASON,
      ...(loss.held
        ? [{ name: 'force', label: 'Also while the branch may run the desktop', initial: false, help: 'Without it the datacenter refuses as long as somebody may be at work.' }]
        : []),
    ],
    run: async (values) => {
      await call('POST /v1/volumes/{volume}/snapshots/{number}/roll-back', {
        path: { volume: volume.id, number: snapshot.number },
        body: { reason: why(values), force: values['force'] === true },
      });
      changed();
    },
  };
}

export function dropSnapshot(volume: Volume, snapshot: VolumeSnapshot, changed: () => void): Task {
  return {
    title: `Delete snapshot ${snapshot.number} of ${named(volume)}`,
    danger: true,
    verb: 'Delete',
    about: <p>Nobody can go back to it any more. This cannot be undone.</p>,
    fields: [REASON],
    run: async (values) => {
      await call('POST /v1/volumes/{volume}/snapshots/{number}/delete', {
        path: { volume: volume.id, number: snapshot.number },
        body: { reason: why(values) },
      });
      changed();
    },
  };
}

export function exportSnapshot(volume: Volume, snapshot: VolumeSnapshot): Task {
  return {
    title: `Export snapshot ${snapshot.number} of ${named(volume)}`,
    verb: 'Export',
    fields: EXPORT,
    run: async (values) => {
      const operation = await call('POST /v1/volumes/{volume}/snapshots/{number}/export', {
        path: { volume: volume.id, number: snapshot.number },
        body: { path: text(values, 'path') ?? '', format: String(values['format']) },
      });
      navigate(to('operations', operation.id));
    },
  };
}

export function restoreFork(volume: Volume, fork: VolumeFork, changed: () => void): Task {
  return {
    title: `Make fork ${fork.name} the state of ${named(volume)}`,
    danger: true,
    verb: 'Restore',
    about: <p>The desktop goes on behind the fork from its next start on. What the datacenter has now stays as a snapshot.</p>,
    fields: [REASON],
    run: async (values) => {
      await call('POST /v1/volumes/{volume}/forks/{fork}/restore', {
        path: { volume: volume.id, fork: fork.name },
        body: { reason: why(values) },
      });
      changed();
    },
  };
}

export function discardFork(volume: Volume, fork: VolumeFork, changed: () => void): Task {
  return {
    title: `Discard fork ${fork.name} of ${named(volume)}`,
    danger: true,
    verb: 'Discard',
    type: fork.name,
    about: <p>What somebody wrote under a lease that had ended is given up for good. Nothing else has it.</p>,
    fields: [REASON],
    run: async (values) => {
      await call('POST /v1/volumes/{volume}/forks/{fork}/discard', {
        path: { volume: volume.id, fork: fork.name },
        body: { reason: why(values) },
      });
      changed();
    },
  };
}

export function breakLease(volume: Volume, changed: () => void): Task {
  const holder = volume.lease?.branch;
  return {
    title: holder ? `Break ${holder}'s lease of ${named(volume)}` : `Give ${named(volume)} to another branch`,
    danger: holder !== undefined,
    verb: holder ? 'Break the lease' : 'Give it',
    about: holder ? (
      <ul>
        <li>{holder} may not run the desktop any more; it stops when the branch hears of it.</li>
        <li>What it brings from now on becomes a fork, for somebody to decide about.</li>
      </ul>
    ) : (
      <p>Nobody holds the volume. All that changes is which branch may ask for it.</p>
    ),
    fields: [
      { name: 'home', label: 'Branch that may ask for it from now on', initial: volume.home, required: true },
      REASON,
      ...(holder ? [{ name: 'force', label: 'Also while the branch may still run the desktop', initial: false }] : []),
    ],
    run: async (values) => {
      const home = text(values, 'home');
      await call('POST /v1/volumes/{volume}/break-lease', {
        path: { volume: volume.id },
        body: { reason: why(values), force: values['force'] === true, home: home === volume.home ? null : (home ?? null) },
      });
      changed();
    },
  };
}

export function settle(volume: Volume, lease: EndedLease, changed: () => void): Task {
  return {
    title: `Expect nothing more of generation ${lease.generation}`,
    danger: true,
    verb: 'Settle',
    about: <p>What {lease.branch} wrote under it and has not brought yet is refused from now on, and lost with the branch.</p>,
    fields: [REASON],
    run: async (values) => {
      await call('POST /v1/volumes/{volume}/generations/{generation}/settle', {
        path: { volume: volume.id, generation: lease.generation },
        body: { reason: why(values) },
      });
      changed();
    },
  };
}

export function removeVolume(volume: Volume): Task {
  return {
    title: `Delete the volume of ${named(volume)}`,
    danger: true,
    verb: 'Delete',
    type: volume.desktop,
    about: (
      <ul>
        <li>All that its user wrote and {many(volume.snapshots, 'snapshot')} of it are given up for good.</li>
        <li>It is refused while a branch holds it.</li>
      </ul>
    ),
    fields: [REASON],
    run: async (values) => {
      await call('POST /v1/volumes/{volume}/delete', { path: { volume: volume.id }, body: { reason: why(values) } });
      navigate('/desktops');
    },
  };
}
