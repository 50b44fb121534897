// The chunk store: what it holds and saves, its health, and backups of the datacenter.

import { Alert, Button } from '@patternfly/react-core';

import { useStore } from '../api/looks';
import type { DatacenterStatus, Operation, StoreReport } from '../api/schema';
import { ratio } from '../model/saving';
import { outcome, state } from '../model/work';
import { count, many, sentence, size } from '../model/units';
import { Box, Facts, Figure, Meter } from '../parts/facts';
import { OperationList } from '../parts/operations';
import { PageOf } from '../parts/page';
import { Nothing, Seen } from '../parts/seen';
import type { Task } from '../parts/task';
import { useTask } from '../parts/task';
import { Ago, Until } from '../parts/time';
import { VerdictLabel } from '../parts/verdict';
import { BASE, Link, to } from '../router';
import { backup, collect, scrub } from '../tasks/store';

const KINDS: Operation['kind'][] = ['collect', 'scrub', 'backup'];

function Health({ store, open }: { store: StoreReport; open: (task: Task) => void }) {
  const { damaged = 0, halted, packs = 0 } = store;
  const { passes = 0, next_pack = 0, rate_bytes_per_s = 0, hours, utc_offset, began_unix_s, ended_unix_s } = store.scrub ?? {};
  return (
    <Box
      title="Scrub"
      actions={
        <Button variant="link" isInline onClick={() => open(scrub())}>
          Scrub now
        </Button>
      }
    >
      <Facts
        of={[
          ['Health', <VerdictLabel key="health" of={damaged > 0 ? { tone: 'bad', word: many(damaged, 'piece', 'pieces') + ' damaged' } : { tone: 'good', word: 'Sound' }} />],
          halted != null && ['Collections', <VerdictLabel key="halted" of={{ tone: 'bad', word: 'Halted', why: halted }} />],
          [
            'This pass',
            began_unix_s ? (
              <span key="pass">
                pack {count(next_pack)} of {count(packs)}, begun <Ago at={began_unix_s} />
                <br />
                <Meter part={next_pack} whole={packs} label="Packs read in this pass" />
              </span>
            ) : (
              'not begun'
            ),
          ],
          ['Last pass ended', ended_unix_s ? <Ago key="ended" at={ended_unix_s} /> : 'none yet'],
          ['Passes', count(passes)],
          ['Pace', rate_bytes_per_s > 0 ? `${size(rate_bytes_per_s)} a second, ${hours ? `${hours} (UTC${utc_offset})` : 'always'}` : 'only when it is asked for'],
        ]}
      />
    </Box>
  );
}

function Collection({ store, open }: { store: StoreReport; open: (task: Task) => void }) {
  const last = store.last_collection;
  return (
    <Box
      title="Garbage"
      actions={
        <Button variant="link" isInline onClick={() => open(collect(store.halted ?? undefined))}>
          Collect now
        </Button>
      }
    >
      {last ? (
        <Facts
          of={[
            ['Last collection', <Ago key="when" at={store.collected_unix_s} />],
            ['Condemned', `${count(last.condemned ?? 0)}, ${size(last.condemned_bytes ?? 0)}: still readable`],
            ['Waiting', `${count(last.waiting ?? 0)}, ${size(last.waiting_bytes ?? 0)}: their grace is not over`],
            ['Erased', `${count(last.erased ?? 0)}, ${size(last.erased_bytes ?? 0)}`],
            ['Given back', size(last.freed_bytes ?? 0)],
            ['Dead in packs', size(last.dead_bytes ?? 0)],
            last.out_of_space === true && ['Note', 'rewriting ended early: the disk is full'],
          ]}
        />
      ) : (
        <Nothing title="Nothing was collected yet" />
      )}
    </Box>
  );
}

function Backup({ operations, open }: { operations: Operation[]; open: (task: Task) => void }) {
  const last = operations.find((one) => one.kind === 'backup' && one.state === 'succeeded');
  const result = last?.result && 'backup' in last.result ? last.result.backup : undefined;
  const failed = operations.find((one) => one.kind === 'backup');
  return (
    <Box
      title="Backup"
      actions={
        <Button variant="link" isInline onClick={() => open(backup())}>
          Back up now
        </Button>
      }
    >
      {failed?.state === 'failed' && <Alert isInline isPlain component="p" variant="danger" title={`The last one failed: ${outcome(failed)}`} />}
      {last && result ? (
        <Facts
          of={[
            ['Last backup', <Link key="last" page={to('operations', last.id)}><Ago at={last.finished_unix_s} /></Link>],
            ['State', <VerdictLabel key="state" of={state(last)} />],
            ['Folder', <span key="folder" className="splice-mono">{result.folder}</span>],
            ['Number there', count(result.number ?? 0)],
            ['Copied', `${size(result.copied_bytes ?? 0)} of ${size(result.bytes ?? 0)}`],
            ...(result.warnings ?? []).map((warning): [string, string] => ['Note', warning]),
          ]}
        />
      ) : (
        <Nothing title="No backup is remembered">Without one, the loss of this machine is the loss of every image and of all that users wrote.</Nothing>
      )}
    </Box>
  );
}

function Keys({ status }: { status: DatacenterStatus }) {
  return (
    <Box title="Datacenter">
      <Facts
        of={[
          ['Realm', status.name],
          ['Link address', status.link_address],
          ['Software', status.software],
          ['Up for', <Ago key="up" at={Math.floor(Date.now() / 1000) - status.uptime_s} />],
          ['Publisher key endorsed until', <Until key="key" at={status.endorsement_expires_unix_s} />],
          ['Id', <span key="id" className="splice-mono">{status.realm}</span>],
          ['Console', <a key="licences" href={`${BASE}/licences.txt`}>licences of what it is made of</a>],
        ]}
      />
    </Box>
  );
}

export function StorePage() {
  const look = useStore();
  const [dialog, open] = useTask();
  return (
    <PageOf title="Store">
      {dialog}
      <Seen look={look}>
        {({ store, status, operations }) => {
          const { stored_bytes = 0, plain_bytes = 0, free_bytes = 0, chunks = 0, nodes = 0, packs = 0 } = store;
          return (
            <div className="splice-stack">
              {status.warnings.map((warning) => (
                <Alert key={warning} isInline component="h2" variant="warning" title={sentence(warning)} />
              ))}
              <Box title="At a glance">
                <div className="splice-figures">
                  <Figure name="Stored" value={size(stored_bytes)} about={many(packs, 'pack')} />
                  <Figure name="Plain" value={size(plain_bytes)} about={`${ratio(plain_bytes, stored_bytes)} compressed`} />
                  <Figure name="Chunks" value={count(chunks)} about={`${count(nodes)} manifest nodes`} />
                  <Figure
                    name="Free on its disk"
                    value={size(free_bytes)}
                    about={<Meter part={stored_bytes} whole={stored_bytes + free_bytes} label="Stored, of stored and free" tone={free_bytes < 10 * 2 ** 30 ? 'bad' : 'plain'} />}
                  />
                </div>
              </Box>
              <div className="splice-halves">
                <Health store={store} open={open} />
                <Collection store={store} open={open} />
                <Backup operations={operations} open={open} />
                <Keys status={status} />
              </div>
              <Box title="What was done" flush>
                <OperationList operations={operations.filter((one) => KINDS.includes(one.kind))} />
              </Box>
            </div>
          );
        }}
      </Seen>
    </PageOf>
  );
}
