// What can be started on the store as a whole. All of it is long work.

import { call } from '../api/client';
import type { Operation } from '../api/schema';
import type { Task } from '../parts/task';
import { text } from '../parts/task';
import { navigate, to } from '../router';
import { badPath } from './image';

const follow = (operation: Operation): void => navigate(to('operations', operation.id));

export function collect(halted: string | undefined): Task {
  return {
    title: 'Collect garbage',
    about: (
      <>
        <p>
          What no version, snapshot or fork refers to is condemned, and stays readable for a grace. What was condemned a grace ago is erased. It runs
          daily by itself.
        </p>
        {halted && <p>Collections are halted: {halted}</p>}
      </>
    ),
    verb: 'Collect',
    fields: [
      { name: 'dry', label: 'Only say what would be done', initial: false },
      ...(halted ? [{ name: 'resume', label: 'Go on: somebody has looked into it', initial: false }] : []),
    ],
    run: async (values) => {
      follow(await call('POST /v1/store/collect', { body: { dry_run: values['dry'] === true, resume: values['resume'] === true } }));
    },
  };
}

export function scrub(): Task {
  return {
    title: 'Scrub everything now',
    about: <p>Everything in the store is read again and proven, beside all else. The scrub that goes on all the time does the same at its own pace.</p>,
    verb: 'Scrub',
    fields: [
      {
        name: 'rate',
        label: 'Pace',
        initial: '67108864',
        options: [
          ['8388608', '8 MiB a second'],
          ['67108864', '64 MiB a second'],
          ['', 'As fast as the disk gives'],
        ],
      },
    ],
    run: async (values) => {
      const rate = text(values, 'rate');
      follow(await call('POST /v1/store/scrub', { body: { rate_bytes_per_s: rate ? Number(rate) : null } }));
    },
  };
}

export function backup(): Task {
  return {
    title: 'Back up the datacenter',
    about: (
      <p>
        Keys, catalog and packs, while everything goes on. A folder that has a backup already gets only what is new. The passphrase is never in it:
        keep that elsewhere.
      </p>
    ),
    verb: 'Back up',
    fields: [
      { name: 'folder', label: 'Folder', required: true, check: badPath, help: 'On the datacenter’s host, best on another disk; it is made if it does not exist' },
      { name: 'verify', label: 'Read again what is there already', initial: false },
    ],
    run: async (values) => {
      follow(await call('POST /v1/store/backup', { body: { folder: text(values, 'folder') ?? '', verify: values['verify'] === true } }));
    },
  };
}
