// Volumes in a table: whose, who holds them, what their loss would cost.

import type { Volume } from '../api/schema';
import type { Verdict } from '../model/fleet';
import { count, duration, size } from '../model/units';
import { Link, to } from '../router';
import type { Column } from './list';
import { List } from './list';
import { Nothing } from './seen';
import { Ago } from './time';
import { VerdictLabel } from './verdict';

/** What the loss of the holding branch would cost now. */
export function risk(volume: Volume): Verdict {
  if (!volume.lease) return { tone: 'good', word: 'Here', why: 'nobody holds it: all that was sent is here' };
  if (volume.rpo_s == null) return { tone: 'warn', word: 'Unknown', why: 'its branch has not told' };
  const tone = volume.rpo_s > 3600 ? 'bad' : volume.rpo_s > 300 ? 'warn' : 'good';
  return { tone, word: duration(volume.rpo_s), why: 'of work would be lost at most if its branch were lost now' };
}

const COLUMNS: Column<Volume>[] = [
  {
    name: 'Desktop',
    by: (volume) => volume.desktop,
    cell: (volume) => (
      <>
        <Link page={to('volumes', volume.id)}>{volume.desktop}</Link>
        <div className="splice-subtle">{volume.kind === 'user' ? 'user volume' : 'system volume'}</div>
      </>
    ),
  },
  { name: 'Pool', by: (volume) => volume.pool, cell: (volume) => volume.pool },
  { name: 'Branch', by: (volume) => volume.home, cell: (volume) => <Link page={to('branches', volume.home)}>{volume.home}</Link> },
  { name: 'Held by', by: (volume) => volume.lease?.branch ?? '', cell: (volume) => volume.lease?.branch ?? 'nobody' },
  { name: 'At risk', by: (volume) => volume.rpo_s ?? -1, cell: (volume) => <VerdictLabel of={risk(volume)} /> },
  { name: 'Written back', right: true, by: (volume) => volume.applied_unix_s ?? 0, cell: (volume) => <Ago at={volume.applied_unix_s} /> },
  { name: 'Snapshots', right: true, by: (volume) => volume.snapshots, cell: (volume) => count(volume.snapshots) },
  {
    name: 'Forks',
    right: true,
    by: (volume) => volume.forks,
    cell: (volume) => (volume.forks > 0 ? <VerdictLabel of={{ tone: 'warn', word: count(volume.forks), why: 'somebody has to decide about them' }} /> : '0'),
  },
  { name: 'Size', right: true, by: (volume) => volume.size_bytes, cell: (volume) => size(volume.size_bytes) },
];

export function VolumeList({ volumes }: { volumes: Volume[] }) {
  return (
    <List
      label="Volumes"
      rows={volumes}
      columns={COLUMNS}
      rowKey={(volume) => volume.id}
      text={(volume) => `${volume.desktop} ${volume.pool} ${volume.home} ${volume.id}`}
      sorted={{ column: 0, direction: 'asc' }}
      empty={<Nothing title="No volumes">The datacenter knows a volume from its branch&rsquo;s first report of it.</Nothing>}
    />
  );
}
