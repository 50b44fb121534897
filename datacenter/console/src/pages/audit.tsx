// What somebody has to answer for, the newest first; older entries are asked for page by page.

import { Button } from '@patternfly/react-core';
import { useRef, useState } from 'react';

import { call } from '../api/client';
import { asFailure, useLook } from '../api/poll';
import type { AuditEntry } from '../api/schema';
import { sentence, short } from '../model/units';
import { Box } from '../parts/facts';
import type { Column } from '../parts/list';
import { List } from '../parts/list';
import { useTell } from '../parts/notices';
import { PageOf } from '../parts/page';
import { Nothing, Seen } from '../parts/seen';
import { Ago } from '../parts/time';
import { Link, to } from '../router';

const PAGE = 200;

const EVENTS: Record<string, string> = {
  lease_broken: 'Lease broken',
  old_copy: 'Old copy came',
  fork_discarded: 'Fork discarded',
  fork_restored: 'Fork restored',
  generation_settled: 'Generation settled',
  snapshot_deleted: 'Snapshot deleted',
  volume_deleted: 'Volume deleted',
  home_changed: 'Given to another branch',
  rolled_back: 'Rolled back',
};

const COLUMNS: Column<AuditEntry>[] = [
  { name: 'When', by: (one) => one.id, cell: (one) => <Ago at={one.unix_s} /> },
  { name: 'What', by: (one) => EVENTS[one.event] ?? one.event, cell: (one) => EVENTS[one.event] ?? one.event },
  { name: 'Desktop', by: (one) => one.desktop, cell: (one) => <Link page={to('volumes', one.volume)}>{one.desktop || short(one.volume)}</Link> },
  { name: 'Branch', by: (one) => one.branch ?? '', cell: (one) => one.branch ?? '–' },
  { name: 'Generation', right: true, by: (one) => one.generation, cell: (one) => one.generation || '–' },
  { name: 'Who and why', cell: (one) => one.reason },
];

export function AuditPage() {
  // All that was seen: what new entries push off the first page stays.
  const seen = useRef(new Map<number, AuditEntry>());
  const [before, setBefore] = useState<number | null>();
  const tell = useTell();
  const fetch = async (signal?: AbortSignal): Promise<{ entries: AuditEntry[]; next: number | null | undefined }> => {
    const page = await call('GET /v1/audit', { query: { limit: PAGE } }, signal);
    for (const entry of page.entries) seen.current.set(entry.id, entry);
    return { entries: [...seen.current.values()], next: page.next };
  };
  const look = useLook('audit', fetch, 30_000);
  const more = async (id: number): Promise<void> => {
    try {
      const page = await call('GET /v1/audit', { query: { before: id, limit: PAGE } });
      for (const entry of page.entries) seen.current.set(entry.id, entry);
      setBefore(page.next ?? null);
      look.again();
    } catch (error) {
      tell(sentence(asFailure(error).message), 'warning');
    }
  };
  return (
    <PageOf title="Audit log" about="What was done to users’ volumes, by whom and why.">
      <Seen look={look}>
        {({ entries, next }) => {
          const older = before === undefined ? next : before;
          return (
            <Box title="Entries" flush>
              <List
                label="Audit log"
                rows={entries}
                columns={COLUMNS}
                rowKey={(one) => one.id}
                text={(one) => `${EVENTS[one.event] ?? one.event} ${one.desktop} ${one.branch ?? ''} ${one.reason}`}
                sorted={{ column: 0, direction: 'desc' }}
                empty={<Nothing title="Nothing yet">Broken leases, roll-backs, deletions: what takes something from a user is written down here.</Nothing>}
              />
              {older != null && (
                <div className="splice-inset">
                  <Button variant="link" isInline onClick={() => void more(older)}>
                    Older entries
                  </Button>
                </div>
              )}
            </Box>
          );
        }}
      </Seen>
    </PageOf>
  );
}
