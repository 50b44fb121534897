// Who did what, the newest first; older entries are asked for page by page. Whether the log is what was written, `splice audit verify` tells.

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
  log_in: 'Log-in',
  log_out: 'Log-out',
  setup: 'First administrator',
  lease_broken: 'Lease broken',
  old_copy: 'Old copy came',
  fork_discarded: 'Fork discarded',
  fork_restored: 'Fork restored',
  generation_settled: 'Generation settled',
  snapshot_deleted: 'Snapshot deleted',
  volume_deleted: 'Volume deleted',
  home_changed: 'Given to another branch',
  rolled_back: 'Rolled back',
  checked_out: 'Checked out',
  checked_in: 'Checked in',
  wipe_ordered: 'Wipe ordered',
  wiped: 'Wiped',
  moved: 'Moved',
  move_cancelled: 'Move cancelled',
};

/** What was done, in words, or as a call. */
const what = ({ event = '', call: made }: AuditEntry): string => EVENTS[event] ?? made ?? event;
/** How it went, and why it was done. */
const why = ({ result, reason }: AuditEntry): string => [result, reason].filter(Boolean).join('; ');
const where = ({ branch, pool }: AuditEntry): string => [branch, pool].filter(Boolean).join(' / ');

const COLUMNS: Column<AuditEntry>[] = [
  { name: 'When', by: (one) => one.id, cell: (one) => <Ago at={one.unix_s ?? 0} /> },
  { name: 'Who', by: (one) => one.who ?? '', cell: (one) => one.who || '–' },
  { name: 'What', by: what, cell: what },
  { name: 'Where', by: where, cell: (one) => where(one) || '–' },
  {
    name: 'Desktop',
    by: (one) => one.desktop ?? '',
    cell: (one) => (one.volume ? <Link page={to('volumes', one.volume)}>{one.desktop || short(one.volume)}</Link> : '–'),
  },
  { name: 'Result and reason', cell: why },
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
    <PageOf title="Audit log" about="Who signed in, what was changed, and what was done to users’ volumes and why.">
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
                text={(one) => `${one.who ?? ''} ${what(one)} ${where(one)} ${one.desktop ?? ''} ${why(one)}`}
                sorted={{ column: 0, direction: 'desc' }}
                empty={<Nothing title="Nothing yet">Log-ins, and every call that changes something, are written down here.</Nothing>}
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
