// The fleet: every branch in a line, and before that what is not as it should be.

import { Button, Card, CardBody, Icon, ToggleGroup, ToggleGroupItem, ToolbarItem } from '@patternfly/react-core';
import WarnIcon from '@patternfly/react-icons/dist/esm/icons/exclamation-triangle-icon';
import { useState } from 'react';

import { useFleet } from '../api/looks';
import type { Branch, DatacenterStatus, Volume } from '../api/schema';
import { cacheHits, concerns, lag, link, ready, received, urgency } from '../model/fleet';
import { count, many, milliseconds, percent, sentence, size } from '../model/units';
import { ratio } from '../model/saving';
import { Box, Figure } from '../parts/facts';
import type { Column } from '../parts/list';
import { List } from '../parts/list';
import { PageOf } from '../parts/page';
import { Nothing, Seen } from '../parts/seen';
import { useTask } from '../parts/task';
import { Ago, useNow } from '../parts/time';
import { VerdictLabel } from '../parts/verdict';
import { Link, to } from '../router';
import { invite } from '../tasks/branch';

/** So many concerns are shown before the rest is folded. */
const CONCERNS = 5;

function Figures({ status, branches }: { status: DatacenterStatus; branches: Branch[] }) {
  const { store } = status;
  const desktops = branches.flatMap((branch) => branch.status?.desktops ?? []);
  const running = desktops.filter((desktop) => desktop.state === 'running' || desktop.state === 'served').length;
  return (
    <Card>
      <CardBody className="splice-figures">
        <Figure name="Branches online" value={`${status.branches_online} of ${status.branches}`} about={`${status.branches_ready ?? 0} ready for a cut line`} />
        <Figure name="Desktops running" value={count(running)} about={`of ${count(desktops.length)} known`} />
        <Figure name="Over all links" value={size(received(branches))} about="since the branch servers started" />
        <Figure
          name="Stored"
          value={size(store.stored_bytes)}
          about={`${ratio(store.plain_bytes, store.stored_bytes)} compressed, ${size(store.free_bytes)} free`}
        />
        <Figure name="Images" value={count(status.images)} about={many(status.versions, 'version')} />
      </CardBody>
    </Card>
  );
}

function Concerns({ status, branches }: { status: DatacenterStatus; branches: Branch[] }) {
  const now = useNow();
  const [open, setOpen] = useState(false);
  const all = [
    ...status.warnings.map((text) => ({ key: text, what: undefined, text })),
    ...branches.flatMap((branch) => concerns(branch, now).map((text) => ({ key: `${branch.name} ${text}`, what: branch.name, text }))),
  ];
  if (all.length === 0) return null;
  const shown = open ? all : all.slice(0, CONCERNS);
  return (
    <Box
      title="Wants attention"
      actions={
        all.length > CONCERNS && (
          <Button variant="link" isInline aria-expanded={open} onClick={() => setOpen(!open)}>
            {open ? 'Show fewer' : `Show all ${all.length}`}
          </Button>
        )
      }
    >
      <ul className="splice-concerns">
        {shown.map(({ key, what, text }) => (
          <li key={key}>
            <Icon status="warning" isInline>
              <WarnIcon />
            </Icon>
            <span>
              {what && (
                <>
                  <Link page={to('branches', what)}>{what}</Link>:{' '}
                </>
              )}
              {what ? text : sentence(text)}
            </span>
          </li>
        ))}
      </ul>
    </Box>
  );
}

/** The round trip while the link is up, else when the branch was heard of last. */
function LinkNote({ branch }: { branch: Branch }) {
  const rtt = branch.status?.link?.rtt_ms;
  if (branch.state !== 'joined' || !branch.status || (branch.online && rtt == null)) return null;
  return <div className="splice-subtle">{branch.online ? `${milliseconds(rtt ?? 0)} round trip` : <>heard of <Ago at={branch.status.reported_unix_s} /></>}</div>;
}

function columns(volumes: Volume[] | undefined, now: number): Column<Branch>[] {
  return [
    {
      name: 'Branch',
      by: (branch) => branch.name,
      cell: (branch) => (
        <>
          <Link page={to('branches', branch.name)}>{branch.name}</Link>
          {branch.site && <div className="splice-subtle">{branch.site}</div>}
        </>
      ),
    },
    {
      name: 'Link',
      by: (branch) => urgency(link(branch)),
      cell: (branch) => (
        <>
          <VerdictLabel of={link(branch)} />
          <LinkNote branch={branch} />
        </>
      ),
    },
    { name: 'Behind', by: (branch) => urgency(lag(branch, volumes, now)), cell: (branch) => <VerdictLabel of={lag(branch, volumes, now)} /> },
    { name: 'Cut line', by: (branch) => urgency(ready(branch)), cell: (branch) => <VerdictLabel of={ready(branch)} /> },
    {
      name: 'Cache hits',
      right: true,
      by: (branch) => {
        const hits = cacheHits(branch);
        return hits ? hits.part / hits.whole : -1;
      },
      cell: (branch) => {
        const hits = cacheHits(branch);
        return hits ? percent(hits.part, hits.whole) : '–';
      },
    },
    {
      name: 'Over the link',
      right: true,
      by: (branch) => branch.status?.counters?.received_bytes ?? -1,
      cell: (branch) => (branch.status?.counters ? size(branch.status.counters.received_bytes ?? 0) : '–'),
    },
    {
      name: 'Desktops',
      right: true,
      by: (branch) => branch.status?.desktops?.length ?? -1,
      cell: (branch) => (branch.status?.desktops ? count(branch.status.desktops.length) : '–'),
    },
  ];
}

type Which = 'all' | 'concerns' | 'down';

function Branches({ branches, volumes, add }: { branches: Branch[]; volumes: Volume[] | undefined; add: () => void }) {
  const now = useNow();
  const [which, setWhich] = useState<Which>('all');
  const concerned = branches.filter((branch) => concerns(branch, now).length > 0);
  const down = branches.filter((branch) => branch.state === 'joined' && !branch.online);
  const choice = (is: Which, words: string) => (
    <ToggleGroupItem text={words} buttonId={`which-${is}`} isSelected={which === is} onChange={() => setWhich(is)} />
  );
  const tools = (
    <ToolbarItem>
      <ToggleGroup aria-label="Which branches">
        {choice('all', `All ${branches.length}`)}
        {choice('concerns', `Want attention ${concerned.length}`)}
        {choice('down', `Link down ${down.length}`)}
      </ToggleGroup>
    </ToolbarItem>
  );
  return (
    <List
      label="Branches"
      rows={{ all: branches, concerns: concerned, down }[which]}
      columns={columns(volumes, now)}
      rowKey={(branch) => branch.id}
      text={(branch) => `${branch.name} ${branch.site ?? ''}`}
      tools={branches.length > 0 && tools}
      sorted={{ column: 0, direction: 'asc' }}
      empty={
        branches.length > 0 ? (
          <Nothing title="None of them" />
        ) : (
          <Nothing title="No branches yet" action={<Button onClick={add}>Invite a branch</Button>}>
            A branch joins with a token that is made here and used once there.
          </Nothing>
        )
      }
    />
  );
}

export function OverviewPage() {
  const look = useFleet();
  const [dialog, open] = useTask();
  const add = (): void => open(invite(look.again));
  return (
    <PageOf title="Fleet" actions={<Button onClick={add}>Invite a branch</Button>}>
      {dialog}
      <Seen look={look}>
        {({ status, branches, volumes }) => (
          <div className="splice-stack">
            <Figures status={status} branches={branches} />
            <Concerns status={status} branches={branches} />
            <Box title="Branches" flush>
              <Branches branches={branches} volumes={volumes.cut ? undefined : volumes.items} add={add} />
            </Box>
          </div>
        )}
      </Seen>
    </PageOf>
  );
}
