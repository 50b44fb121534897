// What can be done to branches and their pools.

import { Alert, ClipboardCopy } from '@patternfly/react-core';

import { call } from '../api/client';
import type { AssignRequest, Branch, MachineType, Pool, StatePolicy } from '../api/schema';
import type { Task } from '../parts/task';
import { text } from '../parts/task';
import { exactRate, parseRate } from '../model/units';

const NAME = /^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$/;

/** What is wrong with a name that is to stand in addresses and paths. */
export function badName(name: string): string | undefined {
  return NAME.test(name) ? undefined : "1 to 64 letters, digits, '.', '_' or '-', beginning with a letter or digit";
}

const badRate = (written: string): string | undefined => {
  const bits = parseRate(written);
  if (bits === undefined) return 'Write it like 512kbit, 5Mbit or 1Gbit, or leave it empty for no limit';
  return bits > 0 && bits < 64_000 ? 'At least 64kbit: below it not even what the ends tell each other gets through' : undefined;
};

const badHours = (written: string): string | undefined =>
  written === 'always' || /^([01]\d|2[0-3]):[0-5]\d-([01]\d|2[0-3]):[0-5]\d$/.test(written) ? undefined : 'Write it like 20:00-06:00, or always';

const badOffset = (written: string): string | undefined => (/^[+-](0\d|1[0-4]):[0-5]\d$/.test(written) ? undefined : 'Write it like +01:00 or -05:30');

const badNumber = (written: string): string | undefined => (/^\d{1,9}$/.test(written) ? undefined : 'A whole number');

function Token({ token, branch }: { token: string; branch: string }) {
  return (
    <div className="splice-task-about">
      <Alert isInline component="p" variant="info" title="The token is shown this once and works once." />
      <p>Run this at {branch}, then start its branch server:</p>
      <ClipboardCopy isReadOnly isCode hoverTip="Copy" clickTip="Copied" textAriaLabel="The command to run at the branch">
        {`splice-branch join ${token}`}
      </ClipboardCopy>
    </div>
  );
}

const DAYS: [string, string][] = [
  ['3600', '1 hour'],
  ['86400', '1 day'],
  ['604800', '7 days'],
  ['2592000', '30 days'],
];

/** Makes a token for a branch that need not exist yet. */
export function invite(changed: () => void, branch?: Branch): Task {
  const again = branch?.state === 'joined';
  return {
    title: branch ? `New token for ${branch.name}` : 'Invite a branch',
    about: again ? (
      <p>
        The server that joins with this token replaces the one that is there, whose certificate is refused from that moment on. Until then nothing
        changes.
      </p>
    ) : undefined,
    verb: 'Make the token',
    fields: [
      ...(branch ? [] : [{ name: 'name', label: 'Name', required: true, check: badName, help: 'As people call the site: new-york' }]),
      { name: 'site', label: 'Place', help: 'For people: a street, a floor', initial: branch?.site ?? '' },
      { name: 'expires', label: 'It can be used for', options: DAYS, initial: '86400' },
    ],
    run: async (values) => {
      const name = branch?.name ?? text(values, 'name') ?? '';
      const made = await call('POST /v1/branches/{branch}/tokens', {
        path: { branch: name },
        body: { expires_s: Number(values['expires']), site: text(values, 'site') ?? null, replace: again },
      });
      changed();
      return <Token token={made.token} branch={made.branch} />;
    },
  };
}

export function revoke(branch: Branch, changed: () => void): Task {
  const running = branch.status?.desktops?.filter((desktop) => desktop.state === 'running').length ?? 0;
  return {
    title: `Revoke ${branch.name}`,
    danger: true,
    verb: 'Revoke',
    type: branch.name,
    about: (
      <>
        <p>For a branch server that was stolen or is given up. This cannot be taken back; the site can only join anew, with a new token.</p>
        <ul>
          <li>Its link is cut at once and its certificate is refused from now on.</li>
          <li>
            {running > 0 ? `${running} desktops that run there` : 'Desktops there'} go on until their leases and offline grace end; what users write is
            not fetched any more.
          </li>
          <li>What was written there and is not here yet stays there.</li>
          <li>Its pools are kept for a branch that is invited under the same name.</li>
        </ul>
      </>
    ),
    run: async () => {
      await call('POST /v1/branches/{branch}/revoke', { path: { branch: branch.name } });
      changed();
    },
  };
}

export function caps(branch: Branch, changed: () => void): Task {
  const { policy } = branch;
  return {
    title: `Caps and hours of ${branch.name}`,
    verb: 'Save',
    fields: [
      { name: 'link', label: 'All that the link carries, each way', help: '20Mbit, say; empty for no limit', initial: exactRate(policy?.link_cap_bits_per_s), check: badRate },
      { name: 'fill', label: 'Fill and write-back', help: 'Empty for no limit but the link’s', initial: exactRate(policy?.fill_cap_bits_per_s), check: badRate },
      { name: 'hours', label: 'When fill may run', help: '20:00-06:00, say, or always', initial: policy?.fill_hours ?? 'always', check: badHours },
      { name: 'offset', label: 'Wall clock there, ahead of UTC', help: '+01:00, say; it knows no summer time', initial: policy?.utc_offset || '+00:00', check: badOffset },
    ],
    run: async (values) => {
      await call('PUT /v1/branches/{branch}/policy', {
        path: { branch: branch.name },
        body: {
          link_cap_bits_per_s: parseRate(text(values, 'link') ?? '') ?? 0,
          fill_cap_bits_per_s: parseRate(text(values, 'fill') ?? '') ?? 0,
          fill_hours: text(values, 'hours') ?? 'always',
          utc_offset: text(values, 'offset') ?? '+00:00',
        },
      });
      changed();
    },
  };
}

const MACHINES: [MachineType, string][] = [
  ['auto', 'The branch chooses'],
  ['splice', 'splice-vmm'],
  ['qemu', 'QEMU'],
];

/** Sets what a pool runs, or makes one. */
export function assign(branch: Branch, pool: Pool | undefined, changed: () => void): Task {
  return {
    title: pool ? `Pool ${pool.name} at ${branch.name}` : `New pool at ${branch.name}`,
    about: pool && <p>Desktops that run go on with what they have; those that start from now on follow this.</p>,
    verb: 'Assign',
    fields: [
      ...(pool ? [] : [{ name: 'name', label: 'Name', required: true, check: badName }]),
      { name: 'version', label: 'Image or version', required: true, initial: pool?.version ?? '', help: 'debian for its latest, debian@3 for one' },
      { name: 'memory', label: 'Memory of a desktop, MiB', initial: String(pool?.memory_mib ?? 1024), required: true, check: badNumber },
      { name: 'vcpus', label: 'Processors of a desktop', initial: String(pool?.vcpus ?? 1), required: true, check: badNumber },
      { name: 'user', label: 'User volume, MiB', initial: String(pool?.user_volume_mib ?? 0), required: true, check: badNumber, help: '0 for none; desktops that have one keep theirs' },
      { name: 'machine', label: 'What runs its desktops', options: MACHINES, initial: pool?.machine ?? 'auto' },
      { name: 'prestage', label: 'Fetch the whole version ahead of use', initial: pool?.prestage ?? true },
      { name: 'tpm', label: 'Its desktops have a TPM', initial: pool?.tpm ?? false },
    ],
    run: async (values) => {
      const body: AssignRequest = {
        version: text(values, 'version') ?? '',
        memory_mib: Number(text(values, 'memory')),
        vcpus: Number(text(values, 'vcpus')),
        user_volume_mib: Number(text(values, 'user')),
        machine: values['machine'] as MachineType,
        prestage: values['prestage'] === true,
        tpm: values['tpm'] === true,
      };
      const name = pool?.name ?? text(values, 'name') ?? '';
      await call('PUT /v1/branches/{branch}/pools/{pool}', { path: { branch: branch.name, pool: name }, body });
      changed();
    },
  };
}

const POLICY: [name: keyof StatePolicy, label: string, help?: string][] = [
  ['lease_s', 'A lease lasts, in seconds'],
  ['offline_grace_s', 'Then a branch may go on offline, in seconds'],
  ['snapshot_every_s', 'A snapshot at most every so many seconds', '0 for none by time'],
  ['keep_newest', 'Snapshots kept: so many of the newest'],
  ['keep_hourly', 'the newest of each of so many hours'],
  ['keep_daily', 'of so many days'],
  ['keep_weekly', 'of so many weeks'],
];

/** How a pool's volumes are leased, and which snapshots of them are kept. */
export function statePolicy(branch: Branch, pool: Pool, now: StatePolicy, changed: () => void): Task {
  return {
    title: `Leases and snapshots of pool ${pool.name}`,
    about: <p>Leases have the new terms from their next renewal on.</p>,
    verb: 'Save',
    fields: [
      ...POLICY.map(([name, label, help]) => ({ name, label, initial: String(now[name]), required: true, check: badNumber, ...(help ? { help } : {}) })),
      { name: 'snapshot_at_log_off', label: 'A snapshot when a user logs off', initial: now.snapshot_at_log_off },
    ],
    run: async (values) => {
      const numbers = Object.fromEntries(POLICY.map(([name]) => [name, Number(text(values, name))]));
      await call('PUT /v1/branches/{branch}/pools/{pool}/state-policy', {
        path: { branch: branch.name, pool: pool.name },
        body: { ...numbers, snapshot_at_log_off: values['snapshot_at_log_off'] === true },
      });
      changed();
    },
  };
}

export function removePool(branch: Branch, pool: Pool, changed: () => void): Task {
  return {
    title: `Remove pool ${pool.name} of ${branch.name}`,
    danger: true,
    verb: 'Remove',
    about: (
      <ul>
        <li>Desktops that run go on; none start any more.</li>
        <li>What its users wrote is not deleted.</li>
      </ul>
    ),
    run: async () => {
      await call('DELETE /v1/branches/{branch}/pools/{pool}', { path: { branch: branch.name, pool: pool.name } });
      changed();
    },
  };
}
