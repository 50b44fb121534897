// One volume: who holds it, what is kept of it, what somebody has to decide about, and the way back.

import { Alert, Button } from '@patternfly/react-core';

import { useVolume } from '../api/looks';
import { asFailure } from '../api/poll';
import type { EndedLease, VolumeFork, VolumeSnapshot, VolumeState } from '../api/schema';
import { CAUSES } from '../model/loss';
import { count, many, sentence, size } from '../model/units';
import { Box, Facts } from '../parts/facts';
import type { Column } from '../parts/list';
import { List } from '../parts/list';
import { Menu } from '../parts/menu';
import { useTell } from '../parts/notices';
import { PageOf } from '../parts/page';
import { Nothing, Seen } from '../parts/seen';
import type { Task } from '../parts/task';
import { useTask } from '../parts/task';
import { Ago, Until } from '../parts/time';
import { VerdictLabel } from '../parts/verdict';
import { risk } from '../parts/volumes';
import { Link, to } from '../router';
import { breakLease, discardFork, dropSnapshot, exportSnapshot, removeVolume, restoreFork, rollBack, settle, snapshot } from '../tasks/volume';

interface Part {
  state: VolumeState;
  open: (task: Task) => void;
  changed: () => void;
}

function Snapshots({ state: { volume, snapshots }, open, changed }: Part) {
  const columns: Column<VolumeSnapshot>[] = [
    { name: 'Snapshot', by: (one) => one.number, cell: (one) => `${one.number}` },
    { name: 'Shows', by: (one) => one.sealed_unix_s, cell: (one) => (one.sealed_unix_s ? <Ago at={one.sealed_unix_s} /> : 'what the volume began with') },
    { name: 'Cut', by: (one) => one.taken_unix_s, cell: (one) => <Ago at={one.taken_unix_s} /> },
    { name: 'Why', by: (one) => CAUSES[one.cause], cell: (one) => CAUSES[one.cause] },
    { name: 'Kept', by: (one) => Number(one.pinned), cell: (one) => (one.pinned ? 'until deleted' : 'by its pool’s policy') },
    {
      name: 'Actions',
      silent: true,
      cell: (one) => (
        <Menu
          of={`snapshot ${one.number}`}
          choices={[
            { word: 'Roll back to it', danger: true, run: () => open(rollBack(volume, one, changed)) },
            { word: 'Export', run: () => open(exportSnapshot(volume, one)) },
            { word: 'Delete', danger: true, run: () => open(dropSnapshot(volume, one, changed)) },
          ]}
        />
      ),
    },
  ];
  return (
    <Box title="Snapshots" flush>
      <List
        label="Snapshots"
        rows={snapshots}
        columns={columns}
        rowKey={(one) => one.number}
        sorted={{ column: 0, direction: 'desc' }}
        empty={<Nothing title="No snapshots yet">They are cut by the pool&rsquo;s policy, at log-off, and whenever somebody asks.</Nothing>}
      />
    </Box>
  );
}

function Forks({ state: { volume, forks }, open, changed }: Part) {
  const columns: Column<VolumeFork>[] = [
    { name: 'Fork', by: (one) => one.name, cell: (one) => <span className="splice-mono">{one.name}</span> },
    { name: 'Generation', right: true, by: (one) => one.generation, cell: (one) => one.generation },
    { name: 'State', cell: (one) => <VerdictLabel of={one.whole ? { tone: 'good', word: 'Whole' } : { tone: 'busy', word: 'On its way', why: 'it shows what its generation began with until all is here' }} /> },
    { name: 'Sealed', cell: (one) => <Ago at={one.sealed_unix_s} /> },
    {
      name: 'Actions',
      silent: true,
      cell: (one) => (
        <Menu
          of={`fork ${one.name}`}
          choices={[
            { word: 'Restore', disabled: !one.whole, run: () => open(restoreFork(volume, one, changed)) },
            { word: 'Discard', danger: true, run: () => open(discardFork(volume, one, changed)) },
          ]}
        />
      ),
    },
  ];
  return (
    <Box title="Forks" flush>
      <div className="splice-inset">
        <Alert isInline isPlain component="p" variant="warning" title="Writes that came under a lease that had ended. Somebody has to decide about each." />
      </div>
      <List label="Forks" rows={forks} columns={columns} rowKey={(one) => one.name} empty={null} />
    </Box>
  );
}

function Ended({ state: { volume, ended }, open, changed }: Part) {
  const columns: Column<EndedLease>[] = [
    { name: 'Generation', by: (one) => one.generation, cell: (one) => one.generation },
    { name: 'Branch', cell: (one) => <Link page={to('branches', one.branch)}>{one.branch}</Link> },
    { name: 'Ended', cell: (one) => <Ago at={one.ended_unix_s} /> },
    { name: 'Why', cell: (one) => one.reason },
    {
      name: 'Settle',
      silent: true,
      cell: (one) => (
        <Button variant="link" isInline onClick={() => open(settle(volume, one, changed))}>
          Expect nothing more
        </Button>
      ),
    },
  ];
  return (
    <Box title="Ended leases that may still come back" flush>
      <List label="Ended leases" rows={ended} columns={columns} rowKey={(one) => one.generation} empty={null} />
    </Box>
  );
}

function Standing({ state: { volume } }: { state: VolumeState }) {
  const { lease } = volume;
  return (
    <div className="splice-halves">
      <Box title="Volume">
        <Facts
          of={[
            ['Desktop', volume.desktop],
            ['Kind', volume.kind === 'user' ? 'user volume' : 'system volume'],
            ['Pool', volume.pool],
            ['Branch', <Link key="home" page={to('branches', volume.home)}>{volume.home}</Link>],
            ['Size', size(volume.size_bytes)],
            ['Snapshots', count(volume.snapshots)],
            ['Id', <span key="id" className="splice-mono">{volume.id}</span>],
          ]}
        />
      </Box>
      <Box title="Who holds it">
        <Facts
          of={[
            ['Held by', lease ? <Link key="holder" page={to('branches', lease.branch)}>{lease.branch}</Link> : 'nobody'],
            lease != null && ['Generation', lease.generation],
            lease != null && ['Renewed until', <Until key="expires" at={lease.expires_unix_s} />],
            lease != null && ['May run offline until', <Until key="ends" at={lease.ends_unix_s} />],
            ['Written back', <Ago key="applied" at={volume.applied_unix_s} />],
            ['Not here yet', volume.lag_records == null ? 'its branch has not told' : volume.lag_records === 0 ? 'nothing' : many(volume.lag_records, 'record')],
            ['At risk', <VerdictLabel key="risk" of={risk(volume)} />],
          ]}
        />
      </Box>
    </div>
  );
}

export function VolumePage({ id }: { id: string }) {
  const look = useVolume(id);
  const [dialog, open] = useTask();
  const tell = useTell();
  const volume = look.data?.volume;
  const cut = async (): Promise<void> => {
    if (!volume) return;
    try {
      const made = await snapshot(volume);
      tell(`Snapshot ${made.number} is cut.`);
      look.again();
    } catch (error) {
      tell(sentence(asFailure(error).message), 'warning');
    }
  };
  return (
    <PageOf
      title={volume ? volume.desktop : id.slice(0, 12)}
      {...(volume ? { about: volume.kind === 'user' ? 'User volume: what its user keeps' : 'System volume: what was written over its version' } : {})}
      above={[['Desktops', '/desktops']]}
      actions={
        volume && (
          <>
            <Button variant="secondary" onClick={() => void cut()}>
              Cut a snapshot
            </Button>
            <Menu
              of={volume.desktop}
              word="Actions"
              choices={[
                volume.lease
                  ? { word: 'Break the lease', danger: true, run: () => open(breakLease(volume, look.again)) }
                  : { word: 'Give to another branch', run: () => open(breakLease(volume, look.again)) },
                { word: 'Delete the volume', danger: true, disabled: volume.lease != null, run: () => open(removeVolume(volume)) },
              ]}
            />
          </>
        )
      }
    >
      {dialog}
      <Seen look={look}>
        {(state) => (
          <div className="splice-stack">
            {state.forks.length > 0 && <Forks state={state} open={open} changed={look.again} />}
            <Snapshots state={state} open={open} changed={look.again} />
            <Standing state={state} />
            {state.ended.length > 0 && <Ended state={state} open={open} changed={look.again} />}
          </div>
        )}
      </Seen>
    </PageOf>
  );
}
