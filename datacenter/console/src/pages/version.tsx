// One version: what is in it, what differs from its parent, how it boots, and who uses it.

import { Alert, Button } from '@patternfly/react-core';

import { useVersion } from '../api/looks';
import type { BootOutcome, Branch, ProfileSummary, Version, VersionDiff } from '../api/schema';
import { poolReady } from '../model/fleet';
import { ofVersion } from '../model/saving';
import { count, many, milliseconds, percent, sentence, size } from '../model/units';
import { asFailure } from '../api/poll';
import { Box, Facts, Figure, Meter } from '../parts/facts';
import type { Column } from '../parts/list';
import { List } from '../parts/list';
import { Menu } from '../parts/menu';
import { useTell } from '../parts/notices';
import { PageOf } from '../parts/page';
import { Nothing, Seen } from '../parts/seen';
import { useTask } from '../parts/task';
import { Ago } from '../parts/time';
import { VerdictLabel } from '../parts/verdict';
import { Link, to } from '../router';
import { encode, exportVersion, pin, remove, unpin, verify } from '../tasks/image';

function DiffBox({ version, parent, diff, start }: { version: Version; parent: Version | undefined; diff: VersionDiff | undefined; start: () => void }) {
  const update = diff?.update;
  return (
    <Box title={parent ? `What differs from ${parent.image}@${parent.number}` : 'What differs from its parent'}>
      {diff ? (
        <Facts
          of={[
            ['New for a branch', `${size(diff.new_bytes)} in ${many(diff.new_chunks, 'chunk')}`],
            ['Over a link at most', size(diff.stored_bytes)],
            [
              'Encoded update',
              update ? (
                update.whole ? (
                  <strong key="update">{size(update.packed_bytes)}</strong>
                ) : (
                  `${update.encoded_batches} of ${many(update.batches, 'batch', 'batches')}, ${size(update.packed_bytes)} so far`
                )
              ) : (
                <Button key="encode" variant="link" isInline onClick={start}>
                  Encode it
                </Button>
              ),
            ],
            [
              'Tree',
              <span key="tree">
                {count(diff.changed_leaves)} of {count(diff.total_leaves)} leaves changed
                <br />
                <Meter part={diff.changed_leaves} whole={diff.total_leaves} label="Leaves changed" />
              </span>,
            ],
          ]}
        />
      ) : (
        <Nothing title={version.parent ? 'Its parent is gone' : 'It is the first'}>
          {version.parent ? 'The version that it follows was deleted.' : 'A branch fetches it as it is stored.'}
        </Nothing>
      )}
    </Box>
  );
}

const bootColumns = (branches: Branch[]): Column<BootOutcome>[] => [
  { name: 'Branch', cell: (one) => branches.find((branch) => branch.id === one.branch)?.name ?? one.branch.slice(0, 12) },
  { name: 'Reported', cell: (one) => <Ago at={one.reported_unix_s} /> },
  { name: 'Boot', right: true, by: (one) => one.boot.boot_ms ?? 0, cell: (one) => milliseconds(one.boot.boot_ms ?? 0) },
  { name: 'Read', right: true, by: (one) => one.boot.touched_bytes ?? 0, cell: (one) => size(one.boot.touched_bytes ?? 0) },
  { name: 'Covered', right: true, cell: ({ boot }) => percent(boot.covered_bytes ?? 0, boot.touched_bytes ?? 0) },
  { name: 'Waited for', right: true, by: (one) => one.boot.waited_bytes ?? 0, cell: (one) => size(one.boot.waited_bytes ?? 0) },
];

function BootBox({ version, profile, branches }: { version: Version; profile: ProfileSummary | null | undefined; branches: Branch[] }) {
  return (
    <Box title="Boot profile" flush={(profile?.last_boots.length ?? 0) > 0}>
      {profile ? (
        <>
          <div className={profile.last_boots.length > 0 ? 'splice-inset' : ''}>
            <Facts
              of={[
                ['Names', profile.counter > 0 ? `${size(profile.bytes)} in ${many(profile.chunks, 'chunk')}` : 'nothing yet: boots were reported, none is signed'],
                ['Made of', profile.carried_from ? 'its parent’s profile, carried over: no boot of this version was reported' : many(profile.boots, 'boot')],
                ['Of the disk', percent(profile.bytes, version.data_bytes)],
                ['Reported', many(profile.boots_reported, 'boot')],
                ['Made', <Ago key="made" at={profile.made_unix_s} />],
              ]}
            />
          </div>
          {profile.last_boots.length > 0 && (
            <List label="Last boots" rows={profile.last_boots} columns={bootColumns(branches)} rowKey={(one) => `${one.branch} ${one.reported_unix_s} ${one.boot.boot_ms}`} empty={null} />
          )}
        </>
      ) : (
        <Nothing title="No boot was reported yet">The first boots at branches are recorded; from then on others have what boots read before they ask.</Nothing>
      )}
    </Box>
  );
}

interface Use {
  branch: Branch;
  pool: Branch['pools'][number];
}

function Uses({ version, branches }: { version: Version; branches: Branch[] }) {
  const uses: Use[] = branches.flatMap((branch) => branch.pools.filter((pool) => pool.version_id === version.id).map((pool) => ({ branch, pool })));
  const columns: Column<Use>[] = [
    { name: 'Branch', by: ({ branch }) => branch.name, cell: ({ branch }) => <Link page={to('branches', branch.name)}>{branch.name}</Link> },
    { name: 'Pool', by: ({ pool }) => pool.name, cell: ({ pool }) => pool.name },
    {
      name: 'There',
      cell: ({ branch }) => {
        const held = branch.status?.versions?.find((one) => one.version === version.id);
        return held ? (held.complete ? 'all of it' : percent(held.resident_bytes ?? 0, held.total_bytes ?? 0)) : '–';
      },
    },
    { name: 'Cut line', cell: ({ branch, pool }) => <VerdictLabel of={poolReady(branch, pool)} /> },
  ];
  return (
    <Box title="Runs in" flush>
      <List
        label="Pools that run it"
        rows={uses}
        columns={columns}
        rowKey={({ branch, pool }) => `${branch.id} ${pool.name}`}
        sorted={{ column: 0, direction: 'asc' }}
        empty={<Nothing title="No pool runs it">A pool is told to on its branch&rsquo;s page.</Nothing>}
      />
    </Box>
  );
}

export function VersionPage({ image, number }: { image: string; number: string }) {
  const look = useVersion(image, number);
  const [dialog, open] = useTask();
  const tell = useTell();
  const start = (work: Promise<void>): void => void work.catch((error: unknown) => tell(sentence(asFailure(error).message), 'warning'));
  const version = look.data?.version;
  const parent = look.data?.parent;
  return (
    <PageOf
      title={`${image}@${version?.number ?? number}`}
      above={[
        ['Images', '/images'],
        [image, to('images', image)],
      ]}
      {...(version ? { about: version.note ?? undefined } : {})}
      mark={version?.pinned && <VerdictLabel of={{ tone: 'quiet', word: 'Pinned', why: version.pinned.note ?? 'it is not deleted' }} />}
      actions={
        version && (
          <Menu
            of={`${image}@${version.number}`}
            word="Actions"
            choices={[
              { word: 'Verify', about: 'reads every chunk back', run: () => start(verify(version)) },
              { word: 'Export', run: () => open(exportVersion(version)) },
              version.pinned ? { word: 'Unpin', run: () => open(unpin(version, look.again)) } : { word: 'Pin', run: () => open(pin(version, look.again)) },
              { word: 'Delete', danger: true, run: () => open(remove(version)) },
            ]}
          />
        )
      }
    >
      {dialog}
      <Seen look={look}>
        {({ version, parent: of, diff, branches }) => (
          <div className="splice-stack">
            {!version.boot && (
              <Alert isInline component="h2" variant="info" title="No kernel was found in it: its desktops need firmware, and so QEMU." />
            )}
            <Box title="At a glance">
              <div className="splice-figures">
                <Figure name="Disk" value={size(version.disk.size_bytes)} about={`${size(version.data_bytes)} of it data`} />
                <Figure name="New in the store" value={size(version.stored_bytes)} about={many(version.new_chunks, 'new chunk')} />
                <Figure name="Saved" value={ofVersion(version)} about="data over stored" />
                <Figure
                  name="Over a link from its parent"
                  value={diff?.update?.whole ? size(diff.update.packed_bytes) : diff ? `≤ ${size(diff.stored_bytes)}` : '–'}
                  about={diff?.update?.whole ? 'as encoded' : 'not encoded yet'}
                />
              </div>
            </Box>
            <div className="splice-halves">
              <DiffBox version={version} parent={of} diff={diff} start={() => parent && start(encode(version, parent))} />
              <Box title="What it is">
                <Facts
                  of={[
                    ['System', version.os ?? '–'],
                    ['Kernel', version.boot?.kernel_path ?? '–'],
                    version.boot != null && ['Root', <span key="root" className="splice-mono">{version.boot.root_argument}</span>],
                    ['Published', <Ago key="published" at={version.created_unix_s} />],
                    ['Follows', of ? <Link key="parent" page={to('images', of.image, of.number)}>{`${of.image}@${of.number}`}</Link> : '–'],
                    ['Chunks', `${size(version.chunk_sizes.min)} to ${size(version.chunk_sizes.max)}`],
                    ['Id', <span key="id" className="splice-mono">{version.id}</span>],
                  ]}
                />
              </Box>
            </div>
            <BootBox version={version} profile={version.profile} branches={branches} />
            <Uses version={version} branches={branches} />
          </div>
        )}
      </Seen>
    </PageOf>
  );
}
