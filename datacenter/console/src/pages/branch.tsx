// One branch: its link, its cache, its pools and what they can do with the line cut, its desktops, and what its users wrote.

import { Alert, Button } from '@patternfly/react-core';

import { call } from '../api/client';
import { useBranch } from '../api/looks';
import { asFailure } from '../api/poll';
import type { Branch, DesktopStatus, Latencies, Pool, VersionResidency, Volume } from '../api/schema';
import type { Verdict } from '../model/fleet';
import { cacheHits, concerns, lag, link, poolReady, ready, told, urgency } from '../model/fleet';
import { count, duration, many, milliseconds, percent, rate, sentence, short, size } from '../model/units';
import { Box, Facts, Figure, Meter } from '../parts/facts';
import type { Column } from '../parts/list';
import { List } from '../parts/list';
import { Menu } from '../parts/menu';
import { useTell } from '../parts/notices';
import { PageOf } from '../parts/page';
import { Nothing, Seen } from '../parts/seen';
import type { Task } from '../parts/task';
import { useTask } from '../parts/task';
import { Ago, Until, useNow } from '../parts/time';
import { VerdictLabel } from '../parts/verdict';
import { VolumeList } from '../parts/volumes';
import { Link, to } from '../router';
import { assign, caps, invite, removePool, revoke, statePolicy } from '../tasks/branch';

/** `IMAGE@NUMBER` as a link to its page. */
export function VersionLink({ name }: { name: string }) {
  const [image = '', number] = name.split('@');
  return number ? <Link page={to('images', image, number)}>{name}</Link> : <>{name || '–'}</>;
}

/** Names of the versions that a branch told of, by id. */
export function versionNames(branch: Branch): Map<string, string> {
  const names = new Map(branch.pools.map((pool) => [pool.version_id, pool.version]));
  for (const { version, image, number } of branch.status?.versions ?? []) if (version && image) names.set(version, `${image}@${number}`);
  return names;
}

function Waits({ of }: { of: Latencies | undefined }) {
  if (!of?.count) return <>none yet</>;
  return (
    <>
      {milliseconds(of.p50_ms ?? 0)} half of them, {milliseconds(of.p99_ms ?? 0)} 99 of 100 ({count(of.count)})
    </>
  );
}

function LinkBox({ branch, open, changed }: { branch: Branch; open: (task: Task) => void; changed: () => void }) {
  const { policy } = branch;
  const { counters, link: report } = branch.status ?? {};
  const packed = counters?.update_packed_bytes ?? 0;
  return (
    <Box
      title="Link"
      actions={
        <Button variant="link" isInline onClick={() => open(caps(branch, changed))}>
          Caps and hours
        </Button>
      }
    >
      <Facts
        of={[
          ['State', <VerdictLabel key="state" of={link(branch)} />],
          ['Since', <Ago key="since" at={report?.since_unix_s} />],
          ['Round trip', branch.online && report?.rtt_ms != null ? milliseconds(report.rtt_ms) : '–'],
          ['Comes from', branch.remote_address ?? '–'],
          ['Received', counters ? size(counters.received_bytes ?? 0) : '–'],
          ['By updates', packed > 0 ? `${size(packed)} for ${size(counters?.update_bytes ?? 0)}` : '–'],
          ['Guests waited', <Waits key="waits" of={counters?.demand_wait} />],
          ['Cap', policy?.link_cap_bits_per_s ? rate(policy.link_cap_bits_per_s) : 'none'],
          ['Fill', `${policy?.fill_cap_bits_per_s ? rate(policy.fill_cap_bits_per_s) : 'no cap'}, ${policy?.fill_hours ?? 'always'} (UTC${policy?.utc_offset || '+00:00'})`],
        ]}
      />
    </Box>
  );
}

function CacheBox({ branch }: { branch: Branch }) {
  const cache = branch.status?.cache;
  const hits = cacheHits(branch);
  const { bytes = 0, capacity_bytes = 0, quarantined = 0, quarantined_total = 0 } = cache ?? {};
  return (
    <Box title="Cache">
      {cache ? (
        <Facts
          of={[
            ['Hits', hits ? `${percent(hits.part, hits.whole)} of ${many(hits.whole, 'read')}` : 'nothing was read yet'],
            [
              'Holds',
              <span key="holds">
                {size(bytes)} of {size(capacity_bytes)}
                <br />
                <Meter part={bytes} whole={capacity_bytes} label="Cache used" />
              </span>,
            ],
            ['Chunks', count(cache.chunks ?? 0)],
            ['Damaged', quarantined > 0 ? `${count(quarantined)} not fetched again yet` : `none (${count(quarantined_total)} healed since its start)`],
          ]}
        />
      ) : (
        <Nothing title="Nothing told yet" />
      )}
    </Box>
  );
}

function IdentityBox({ branch }: { branch: Branch }) {
  const readiness = branch.status?.readiness;
  const follows = branch.status?.assignment_counter;
  return (
    <Box title="Standing">
      <Facts
        of={[
          ['Joined', <Ago key="joined" at={branch.joined_unix_s} />],
          branch.revoked_unix_s != null && ['Revoked', <Ago key="revoked" at={branch.revoked_unix_s} />],
          ['Certificate ends', <Until key="certificate" at={branch.certificate_expires_unix_s} />],
          ['Powers on offline until', <Until key="power" at={readiness?.power_on_until_unix_s} />],
          ['Assignment', `${branch.assignment_counter}${follows != null && follows !== branch.assignment_counter ? `, follows ${follows}` : ''}`],
          ['Free for writes', readiness?.overlay_free_bytes != null ? size(readiness.overlay_free_bytes) : '–'],
          ['Software', branch.status?.software || '–'],
          ['Reported', <Ago key="reported" at={branch.status?.reported_unix_s} />],
          ['Id', <span key="id" className="splice-mono">{branch.id}</span>],
        ]}
      />
    </Box>
  );
}

function Pools({ branch, open, changed }: { branch: Branch; open: (task: Task) => void; changed: () => void }) {
  const add = (): void => open(assign(branch, undefined, changed));
  const tell = useTell();
  const policy = async (pool: Pool): Promise<void> => {
    try {
      const now = await call('GET /v1/branches/{branch}/pools/{pool}/state-policy', { path: { branch: branch.name, pool: pool.name } });
      open(statePolicy(branch, pool, now, changed));
    } catch (error) {
      tell(sentence(asFailure(error).message), 'warning');
    }
  };
  const columns: Column<Pool>[] = [
    { name: 'Pool', by: (pool) => pool.name, cell: (pool) => pool.name },
    { name: 'Runs', by: (pool) => pool.version, cell: (pool) => <VersionLink name={pool.version} /> },
    { name: 'Cut line', by: (pool) => urgency(poolReady(branch, pool)), cell: (pool) => <VerdictLabel of={poolReady(branch, pool)} /> },
    {
      name: 'Missing',
      right: true,
      by: (pool) => told(branch, pool)?.missing_bytes ?? -1,
      cell: (pool) => {
        const missing = told(branch, pool)?.missing_bytes;
        return missing === undefined ? '–' : missing === 0 ? 'nothing' : size(missing);
      },
    },
    {
      name: 'Room for writes',
      right: true,
      by: (pool) => told(branch, pool)?.overlay_hours ?? -1,
      cell: (pool) => {
        const hours = told(branch, pool)?.overlay_hours;
        return hours == null ? '–' : hours >= 8760 ? 'a year' : duration(hours * 3600);
      },
    },
    { name: 'Desktop', cell: (pool) => `${pool.vcpus} × CPU, ${size(pool.memory_mib * 1048576)}${pool.tpm ? ', TPM' : ''}` },
    { name: 'User volume', right: true, cell: (pool) => (pool.user_volume_mib ? size(pool.user_volume_mib * 1048576) : 'none') },
    { name: 'Machine', cell: (pool) => pool.machine ?? 'auto' },
    {
      name: 'Actions',
      silent: true,
      cell: (pool) => (
        <Menu
          of={`pool ${pool.name}`}
          choices={[
            { word: 'Change', run: () => open(assign(branch, pool, changed)) },
            { word: 'Leases and snapshots', run: () => void policy(pool) },
            { word: 'Remove', danger: true, run: () => open(removePool(branch, pool, changed)) },
          ]}
        />
      ),
    },
  ];
  return (
    <Box
      title="Pools"
      flush
      actions={
        branch.pools.length > 0 && (
          <Button variant="link" isInline onClick={add}>
            New pool
          </Button>
        )
      }
    >
      <List
        label="Pools"
        rows={branch.pools}
        columns={columns}
        rowKey={(pool) => pool.name}
        sorted={{ column: 0, direction: 'asc' }}
        empty={
          <Nothing title="No pools" action={<Button onClick={add}>New pool</Button>}>
            A pool says which version its desktops boot, and how large they are.
          </Nothing>
        }
      />
    </Box>
  );
}

function Versions({ versions }: { versions: VersionResidency[] }) {
  const columns: Column<VersionResidency>[] = [
    { name: 'Version', by: (one) => `${one.image}@${one.number}`, cell: (one) => <VersionLink name={`${one.image}@${one.number}`} /> },
    {
      name: 'There',
      by: (one) => (one.resident_bytes ?? 0) / Math.max(1, one.total_bytes ?? 0),
      cell: ({ resident_bytes = 0, total_bytes = 0, image, number, complete }) => (
        <div className="splice-progress">
          <Meter part={resident_bytes} whole={total_bytes} label={`${image}@${number} there`} />
          <div className="splice-subtle">
            {complete ? `all of ${size(total_bytes)}` : `${size(resident_bytes)} of ${size(total_bytes)}, ${percent(resident_bytes, total_bytes)}`}
          </div>
        </div>
      ),
    },
    { name: 'Chunks', right: true, by: (one) => one.resident_chunks ?? 0, cell: (one) => `${count(one.resident_chunks ?? 0)} of ${count(one.total_chunks ?? 0)}` },
  ];
  return (
    <Box title="Versions held" flush>
      <List
        label="Versions held"
        rows={versions}
        columns={columns}
        rowKey={(one) => one.version ?? ''}
        sorted={{ column: 0, direction: 'asc' }}
        empty={<Nothing title="None yet">What its pools run is fetched once the branch has its assignment.</Nothing>}
      />
    </Box>
  );
}

function Desktops({ branch }: { branch: Branch }) {
  const names = versionNames(branch);
  const columns: Column<DesktopStatus>[] = [
    { name: 'Desktop', by: (one) => one.id ?? '', cell: (one) => one.id },
    { name: 'State', by: (one) => one.state ?? '', cell: (one) => <VerdictLabel of={desktopState(one)} /> },
    { name: 'Pool', by: (one) => one.pool ?? '', cell: (one) => one.pool },
    {
      name: 'Runs',
      by: (one) => names.get(one.version ?? '') ?? '',
      cell: ({ version = '' }) => (names.has(version) ? <VersionLink name={names.get(version) ?? ''} /> : short(version) || '–'),
    },
    { name: 'Started', right: true, by: (one) => one.started_unix_s ?? 0, cell: (one) => <Ago at={one.started_unix_s} /> },
    {
      name: 'Last boot',
      right: true,
      by: (one) => one.boot?.boot_ms ?? -1,
      cell: ({ boot }) =>
        boot ? (
          <>
            {milliseconds(boot.boot_ms ?? 0)}
            <div className="splice-subtle">{percent(boot.covered_bytes ?? 0, boot.touched_bytes ?? 0)} covered ahead</div>
          </>
        ) : (
          '–'
        ),
    },
  ];
  return (
    <Box title="Desktops" flush>
      <List
        label="Desktops"
        rows={branch.status?.desktops ?? []}
        columns={columns}
        rowKey={(one) => one.id ?? ''}
        text={(one) => `${one.id} ${one.pool} ${one.state}`}
        sorted={{ column: 0, direction: 'asc' }}
        empty={
          <Nothing title="No desktops">
            They are started at the branch: <code>splice desktop start POOL --name NAME</code>
          </Nothing>
        }
      />
    </Box>
  );
}

const DESKTOPS: Record<string, Verdict['tone']> = { running: 'good', served: 'good', starting: 'busy', paused: 'warn', failed: 'bad' };

/** What a desktop is doing, in its branch's word. */
export function desktopState({ state = '' }: DesktopStatus): Verdict {
  const tone = DESKTOPS[state] ?? 'quiet';
  const why = state === 'paused' ? 'a read or write cannot be done for now; it goes on by itself' : undefined;
  return { tone, word: state ? state[0]?.toUpperCase() + state.slice(1) : 'Unknown', ...(why ? { why } : {}) };
}

function Whole({ branch, volumes, open, changed }: { branch: Branch; volumes: Volume[]; open: (task: Task) => void; changed: () => void }) {
  const now = useNow();
  const behind = lag(branch, volumes, now);
  const cut = ready(branch);
  const hits = cacheHits(branch);
  const wants = concerns(branch, now);
  const desktops = branch.status?.desktops ?? [];
  return (
    <div className="splice-stack">
      {wants.length > 0 && (
        <Alert isInline component="h2" variant="warning" title={wants[0] !== undefined && wants.length === 1 ? sentence(wants[0]) : `${wants.length} things want attention`}>
          {wants.length > 1 && (
            <ul>
              {wants.map((text) => (
                <li key={text}>{text}</li>
              ))}
            </ul>
          )}
        </Alert>
      )}
      <Box title="At a glance">
        <div className="splice-figures">
          <Figure name="Link" value={link(branch).word} about={branch.online ? 'desktops fetch and write back' : link(branch).why} />
          <Figure name="With the line cut" value={cut.word} about={cut.why ?? (cut.tone === 'good' ? 'every pool boots' : undefined)} />
          <Figure name="Behind" value={behind.word} about={behind.why} />
          <Figure name="Cache hits" value={hits ? percent(hits.part, hits.whole) : '–'} about="since its branch server started" />
          <Figure name="Desktops" value={count(desktops.filter((one) => one.state === 'running' || one.state === 'served').length)} about={`running, of ${desktops.length}`} />
        </div>
      </Box>
      <Pools branch={branch} open={open} changed={changed} />
      <div className="splice-halves">
        <LinkBox branch={branch} open={open} changed={changed} />
        <div className="splice-stack">
          <CacheBox branch={branch} />
          <IdentityBox branch={branch} />
        </div>
      </div>
      <Versions versions={branch.status?.versions ?? []} />
      <Desktops branch={branch} />
      <Box title="Volumes" flush>
        <VolumeList volumes={volumes} />
      </Box>
    </div>
  );
}

export function BranchPage({ name }: { name: string }) {
  const look = useBranch(name);
  const [dialog, open] = useTask();
  const branch = look.data?.branch;
  return (
    <PageOf
      title={name}
      above={[['Fleet', '/']]}
      {...(branch ? { mark: <VerdictLabel of={link(branch)} />, about: branch.site } : {})}
      actions={
        branch && (
          <Menu
            of={name}
            word="Actions"
            choices={[
              { word: 'Caps and hours', run: () => open(caps(branch, look.again)) },
              { word: 'New pool', run: () => open(assign(branch, undefined, look.again)) },
              { word: 'New token', about: 'for a server that replaces this one', run: () => open(invite(look.again, branch)) },
              branch.state !== 'revoked' && { word: 'Revoke', danger: true, run: () => open(revoke(branch, look.again)) },
            ]}
          />
        )
      }
    >
      {dialog}
      <Seen look={look}>{({ branch, volumes }) => <Whole branch={branch} volumes={volumes.items} open={open} changed={look.again} />}</Seen>
    </PageOf>
  );
}
