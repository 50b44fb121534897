// What can be done to images and versions. Long work answers with an operation, which is where one goes then.

import { call } from '../api/client';
import type { DeletedVersion, Image, Operation, Retention, VerifyMode, Version } from '../api/schema';
import { size } from '../model/units';
import type { Task } from '../parts/task';
import { text } from '../parts/task';
import { navigate, to } from '../router';
import { badName } from './branch';

const follow = (operation: Operation): void => navigate(to('operations', operation.id));

export const badPath = (path: string): string | undefined => (path.startsWith('/') ? undefined : 'The whole path on the datacenter’s host, beginning with /');

export function createImage(): Task {
  return {
    title: 'New image',
    verb: 'Create',
    fields: [
      { name: 'name', label: 'Name', required: true, check: badName },
      {
        name: 'chunk',
        label: 'Average chunk',
        initial: '16384',
        options: [
          ['8192', '8 KiB: finer updates, more to keep track of'],
          ['16384', '16 KiB'],
          ['32768', '32 KiB'],
          ['65536', '64 KiB: less to keep track of, coarser updates'],
        ],
        help: 'It stays for all versions of the image.',
      },
    ],
    run: async (values) => {
      const name = text(values, 'name') ?? '';
      await call('POST /v1/images', { body: { name, chunk_avg_bytes: Number(values['chunk']) } });
      navigate(to('images', name));
    },
  };
}

export function publish(image: Image): Task {
  return {
    title: `Publish a version of ${image.name}`,
    about: <p>The disk file lies on the datacenter&rsquo;s host. The version becomes visible when all of it is stored, read back and signed.</p>,
    verb: 'Publish',
    fields: [
      { name: 'path', label: 'Disk file', required: true, check: badPath, help: 'raw, qcow2, vhdx, vmdk, vdi or vhd; told from its content' },
      { name: 'note', label: 'Note', help: 'A line for people: what changed' },
      {
        name: 'verify',
        label: 'Read back',
        initial: 'full',
        options: [
          ['full', 'All of the disk'],
          ['changed', 'What the version before does not have'],
        ],
      },
      { name: 'same', label: 'Publish even if nothing changed', initial: false },
    ],
    run: async (values) => {
      follow(
        await call('POST /v1/images/{image}/versions', {
          path: { image: image.name },
          body: {
            path: text(values, 'path') ?? '',
            note: text(values, 'note') ?? null,
            verify: values['verify'] as VerifyMode,
            allow_same: values['same'] === true,
          },
        }),
      );
    },
  };
}

const DAY_S = 86_400;

export function retain(image: Image, now: Retention, changed: () => void): Task {
  const whole = (written: string): string | undefined => (/^[1-9]\d{0,8}$/.test(written) ? undefined : 'A whole number, 1 or more');
  return {
    title: `Which versions of ${image.name} are kept`,
    about: (
      <p>
        Those that either rule keeps, and all that are pinned or in use. Without rules all are. Followed before each collection of garbage; what it
        deletes can be had back for a while.
      </p>
    ),
    verb: 'Save',
    danger: true,
    fields: [
      { name: 'last', label: 'So many of the newest', initial: now.last ? String(now.last) : '', check: whole },
      { name: 'days', label: 'Published in the last so many days', initial: now.newer_s ? String(Math.round(now.newer_s / DAY_S)) : '', check: whole },
    ],
    run: async (values) => {
      const [last, days] = [text(values, 'last'), text(values, 'days')];
      await call('PUT /v1/images/{image}/retention', {
        path: { image: image.name },
        body: { last: last ? Number(last) : null, newer_s: days ? Number(days) * DAY_S : null },
      });
      changed();
    },
  };
}

const of = ({ image, number }: Pick<Version, 'image' | 'number'>) => ({ image, number: String(number) });
const named = ({ image, number }: Pick<Version, 'image' | 'number'>): string => `${image}@${number}`;

export async function verify(version: Version): Promise<void> {
  follow(await call('POST /v1/images/{image}/versions/{number}/verify', { path: of(version) }));
}

export async function encode(version: Version, parent: Version): Promise<void> {
  follow(await call('POST /v1/updates', { body: { from: named(parent), to: named(version) } }));
}

export function pin(version: Version, changed: () => void): Task {
  return {
    title: `Pin ${named(version)}`,
    about: <p>A pinned version is not deleted, neither by hand nor by its image&rsquo;s retention.</p>,
    verb: 'Pin',
    fields: [{ name: 'note', label: 'Why', help: 'A line for people' }],
    run: async (values) => {
      await call('PUT /v1/images/{image}/versions/{number}/pin', { path: of(version), body: { note: text(values, 'note') ?? null } });
      changed();
    },
  };
}

export function unpin(version: Version, changed: () => void): Task {
  return {
    title: `Unpin ${named(version)}`,
    about: <p>From now on it may be deleted, also by its image&rsquo;s retention.</p>,
    verb: 'Unpin',
    run: async () => {
      await call('DELETE /v1/images/{image}/versions/{number}/pin', { path: of(version) });
      changed();
    },
  };
}

export function remove(version: Version): Task {
  return {
    title: `Delete ${named(version)}`,
    danger: true,
    verb: 'Delete',
    about: (
      <ul>
        <li>It is refused while a pool, a desktop or a volume uses the version.</li>
        <li>It can be had back for a while, on its image&rsquo;s page. Then what no other version shares, up to {size(version.stored_bytes)}, is erased for good.</li>
      </ul>
    ),
    run: async () => {
      await call('DELETE /v1/images/{image}/versions/{number}', { path: of(version) });
      navigate(to('images', version.image));
    },
  };
}

export function undelete(version: DeletedVersion, changed: () => void): Task {
  return {
    title: `Have ${named(version)} back`,
    verb: 'Have it back',
    run: async () => {
      await call('POST /v1/images/{image}/versions/{number}/undelete', { path: of(version) });
      changed();
    },
  };
}

/** Fields of a dialog that writes a disk file. */
export const EXPORT = [
  { name: 'path', label: 'File', required: true, check: badPath, help: 'On the datacenter’s host; it must not exist' },
  {
    name: 'format',
    label: 'Format',
    initial: 'raw',
    options: [
      ['raw', 'raw, sparse'],
      ['qcow2', 'qcow2'],
    ] as [string, string][],
  },
];

export function exportVersion(version: Version): Task {
  return {
    title: `Export ${named(version)}`,
    verb: 'Export',
    fields: EXPORT,
    run: async (values) => {
      const body = { path: text(values, 'path') ?? '', format: String(values['format']) };
      follow(await call('POST /v1/images/{image}/versions/{number}/export', { path: of(version), body }));
    },
  };
}
