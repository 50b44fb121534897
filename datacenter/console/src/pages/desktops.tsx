// Desktops of all branches, and the volumes that the datacenter has of them.

import { Alert, Tab, Tabs, TabTitleText } from '@patternfly/react-core';
import { useState } from 'react';

import { useDesktops, VOLUMES_MAX } from '../api/looks';
import type { Branch, DesktopStatus, Volume } from '../api/schema';
import { count, milliseconds, short } from '../model/units';
import { Box } from '../parts/facts';
import type { Column } from '../parts/list';
import { List } from '../parts/list';
import { PageOf } from '../parts/page';
import { Nothing, Seen } from '../parts/seen';
import { Ago } from '../parts/time';
import { VerdictLabel } from '../parts/verdict';
import { risk, VolumeList } from '../parts/volumes';
import { Link, to } from '../router';
import { desktopState, VersionLink, versionNames } from './branch';

interface Row {
  branch: Branch;
  desktop: DesktopStatus;
  version: string;
  volume: Volume | undefined;
}

function rows(branches: Branch[], volumes: Volume[]): Row[] {
  const systems = new Map(volumes.filter((volume) => volume.kind === 'system').map((volume) => [`${volume.home}/${volume.desktop}`, volume]));
  return branches.flatMap((branch) => {
    const names = versionNames(branch);
    return (branch.status?.desktops ?? []).map((desktop) => ({
      branch,
      desktop,
      version: names.get(desktop.version ?? '') ?? short(desktop.version ?? ''),
      volume: systems.get(`${branch.name}/${desktop.id}`),
    }));
  });
}

const COLUMNS: Column<Row>[] = [
  {
    name: 'Desktop',
    by: ({ desktop }) => desktop.id ?? '',
    cell: ({ desktop, volume }) => (volume ? <Link page={to('volumes', volume.id)}>{desktop.id}</Link> : desktop.id),
  },
  { name: 'Branch', by: ({ branch }) => branch.name, cell: ({ branch }) => <Link page={to('branches', branch.name)}>{branch.name}</Link> },
  {
    name: 'State',
    by: ({ desktop }) => desktop.state ?? '',
    cell: ({ branch, desktop }) => (
      <>
        <VerdictLabel of={desktopState(desktop)} />
        {!branch.online && (
          <div className="splice-subtle">
            as told <Ago at={branch.status?.reported_unix_s} />
          </div>
        )}
      </>
    ),
  },
  { name: 'Pool', by: ({ desktop }) => desktop.pool ?? '', cell: ({ desktop }) => desktop.pool },
  { name: 'Runs', by: ({ version }) => version, cell: ({ version }) => <VersionLink name={version} /> },
  { name: 'Started', right: true, by: ({ desktop }) => desktop.started_unix_s ?? 0, cell: ({ desktop }) => <Ago at={desktop.started_unix_s} /> },
  { name: 'Last boot', right: true, by: ({ desktop }) => desktop.boot?.boot_ms ?? -1, cell: ({ desktop }) => (desktop.boot ? milliseconds(desktop.boot.boot_ms ?? 0) : '–') },
  { name: 'At risk', by: ({ volume }) => volume?.rpo_s ?? -1, cell: ({ volume }) => (volume ? <VerdictLabel of={risk(volume)} /> : 'at its branch only') },
];

export function DesktopsPage() {
  const look = useDesktops();
  const [tab, setTab] = useState<string | number>('desktops');
  return (
    <PageOf title="Desktops" about="Desktops are started and stopped at their branch, with the line cut too: splice desktop. Here is what the datacenter knows of them.">
      <Seen look={look}>
        {({ branches, volumes }) => {
          const all = rows(branches, volumes.items);
          return (
            <div className="splice-stack">
              <Tabs activeKey={tab} onSelect={(_, key) => setTab(key)} aria-label="Desktops or volumes">
                <Tab eventKey="desktops" title={<TabTitleText>{`Desktops (${all.length})`}</TabTitleText>}>
                  <Box title="Desktops" flush>
                    <List
                      label="Desktops"
                      rows={all}
                      columns={COLUMNS}
                      rowKey={({ branch, desktop }) => `${branch.id} ${desktop.id}`}
                      text={({ branch, desktop, version }) => `${desktop.id} ${branch.name} ${desktop.pool} ${desktop.state} ${version}`}
                      sorted={{ column: 0, direction: 'asc' }}
                      empty={
                        <Nothing title="No desktops yet">
                          They are started at a branch: <code>splice desktop start POOL --name NAME</code>
                        </Nothing>
                      }
                    />
                  </Box>
                </Tab>
                <Tab eventKey="volumes" title={<TabTitleText>{`Volumes (${volumes.items.length}${volumes.cut ? '+' : ''})`}</TabTitleText>}>
                  <Box title="Volumes" flush>
                    {volumes.cut && (
                      <div className="splice-inset">
                        <Alert isInline isPlain component="p" variant="info" title={`The first ${count(VOLUMES_MAX)} are here. A branch's page has all of its own.`} />
                      </div>
                    )}
                    <VolumeList volumes={volumes.items} />
                  </Box>
                </Tab>
              </Tabs>
            </div>
          );
        }}
      </Seen>
    </PageOf>
  );
}
