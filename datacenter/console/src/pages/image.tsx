// One image with its versions, and those that can be had back.

import { Button } from '@patternfly/react-core';

import { useImage } from '../api/looks';
import type { DeletedVersion, Image, Retention, Version } from '../api/schema';
import { ofVersion, parentOf } from '../model/saving';
import { count, duration, size } from '../model/units';
import { Box, Facts } from '../parts/facts';
import type { Column } from '../parts/list';
import { List } from '../parts/list';
import { Menu } from '../parts/menu';
import { PageOf } from '../parts/page';
import { Nothing, Seen } from '../parts/seen';
import type { Task } from '../parts/task';
import { useTask } from '../parts/task';
import { Ago, Until } from '../parts/time';
import { VerdictLabel } from '../parts/verdict';
import { Link, to } from '../router';
import { publish, retain, undelete } from '../tasks/image';

function kept({ last, newer_s }: Retention): string {
  const rules = [...(last ? [`the newest ${last}`] : []), ...(newer_s ? [`those of the last ${duration(newer_s)}`] : [])];
  return rules.length > 0 ? `${rules.join(', and ')}, and all in use` : 'all';
}

function columns(versions: Version[]): Column<Version>[] {
  return [
    {
      name: 'Version',
      by: (version) => version.number,
      cell: (version) => (
        <>
          <Link page={to('images', version.image, version.number)}>{`${version.image}@${version.number}`}</Link>{' '}
          {version.pinned && <VerdictLabel of={{ tone: 'quiet', word: 'Pinned', why: version.pinned.note ?? 'it is not deleted' }} />}
          {version.note && <div className="splice-subtle">{version.note}</div>}
        </>
      ),
    },
    { name: 'Published', right: true, by: (version) => version.created_unix_s, cell: (version) => <Ago at={version.created_unix_s} /> },
    { name: 'Follows', cell: (version) => { const parent = parentOf(version, versions); return parent ? `@${parent.number}` : '–'; } },
    { name: 'Disk', right: true, by: (version) => version.disk.size_bytes, cell: (version) => size(version.disk.size_bytes) },
    { name: 'Data', right: true, by: (version) => version.data_bytes, cell: (version) => size(version.data_bytes) },
    {
      name: 'New in the store',
      right: true,
      by: (version) => version.stored_bytes,
      cell: (version) => (
        <>
          {size(version.stored_bytes)}
          <div className="splice-subtle">{count(version.new_chunks)} chunks</div>
        </>
      ),
    },
    { name: 'Saved', right: true, by: (version) => version.data_bytes / Math.max(1, version.stored_bytes), cell: ofVersion },
  ];
}

const deletedColumns = (open: (task: Task) => void, changed: () => void): Column<DeletedVersion>[] => [
  { name: 'Version', by: (one) => one.number, cell: (one) => `${one.image}@${one.number}` },
  { name: 'Deleted', cell: (one) => <Ago at={one.deleted_unix_s} /> },
  { name: 'By', cell: (one) => (one.by_retention ? 'its image’s retention' : 'hand') },
  { name: 'Given up', cell: (one) => <Until at={one.purge_unix_s} /> },
  {
    name: 'Have it back',
    silent: true,
    cell: (one) => (
      <Button variant="link" isInline onClick={() => open(undelete(one, changed))} aria-label={`Have it back: ${one.image}@${one.number}`}>
        Have it back
      </Button>
    ),
  },
];

function Versions({ image, versions, add }: { image: Image; versions: Version[]; add: () => void }) {
  return (
    <Box title="Versions" flush>
      <List
        label="Versions"
        rows={versions}
        columns={columns(versions)}
        rowKey={(version) => version.id}
        text={(version) => `${version.image}@${version.number} ${version.note ?? ''} ${version.os ?? ''}`}
        sorted={{ column: 0, direction: 'desc' }}
        empty={
          <Nothing title="Not published yet" action={<Button onClick={add}>Publish a version</Button>}>
            {image.name} has no version that a desktop could boot.
          </Nothing>
        }
      />
    </Box>
  );
}

export function ImagePage({ name }: { name: string }) {
  const look = useImage(name);
  const [dialog, open] = useTask();
  const image = look.data?.image;
  return (
    <PageOf
      title={name}
      above={[['Images', '/images']]}
      actions={image && <Button onClick={() => open(publish(image))}>Publish a version</Button>}
    >
      {dialog}
      <Seen look={look}>
        {({ image, versions, deleted, retention }) => (
          <div className="splice-stack">
            <Versions image={image} versions={versions} add={() => open(publish(image))} />
            {deleted.length > 0 && (
              <Box title="Deleted, can be had back" flush>
                <List label="Deleted versions" rows={deleted} columns={deletedColumns(open, look.again)} rowKey={(one) => one.id} empty={null} />
              </Box>
            )}
            <div className="splice-halves">
              <Box
                title="How it is kept"
                actions={<Menu of={name} choices={[{ word: 'Change which versions are kept', run: () => open(retain(image, retention, look.again)) }]} />}
              >
                <Facts
                  of={[
                    ['Versions kept', kept(retention)],
                    ['Chunks', `${size(image.chunk_sizes.min)} to ${size(image.chunk_sizes.max)}, ${size(image.chunk_sizes.avg)} aimed at`],
                    ['Created', <Ago key="created" at={image.created_unix_s} />],
                  ]}
                />
              </Box>
            </div>
          </div>
        )}
      </Seen>
    </PageOf>
  );
}
