// Images: what there is to boot, and what the store saves.

import { Button, Card, CardBody } from '@patternfly/react-core';

import { useImages } from '../api/looks';
import type { Image, Version } from '../api/schema';
import { ofStore } from '../model/saving';
import { count, size } from '../model/units';
import { Box, Figure } from '../parts/facts';
import type { Column } from '../parts/list';
import { List } from '../parts/list';
import { PageOf } from '../parts/page';
import { Nothing, Seen } from '../parts/seen';
import { useTask } from '../parts/task';
import { Ago } from '../parts/time';
import { Link, to } from '../router';
import { createImage } from '../tasks/image';

interface Row {
  image: Image;
  versions: Version[];
}

const sum = (versions: Version[], of: (version: Version) => number): number => versions.reduce((all, version) => all + of(version), 0);

const COLUMNS: Column<Row>[] = [
  {
    name: 'Image',
    by: ({ image }) => image.name,
    cell: ({ image, versions }) => (
      <>
        <Link page={to('images', image.name)}>{image.name}</Link>
        {versions[0]?.os && <div className="splice-subtle">{versions[0].os}</div>}
      </>
    ),
  },
  {
    name: 'Latest',
    by: ({ image }) => image.latest ?? 0,
    cell: ({ image }) =>
      image.latest ? <Link page={to('images', image.name, image.latest)}>{`${image.name}@${image.latest}`}</Link> : 'not published yet',
  },
  { name: 'Published', right: true, by: ({ versions }) => versions[0]?.created_unix_s ?? 0, cell: ({ versions }) => <Ago at={versions[0]?.created_unix_s} /> },
  { name: 'Versions', right: true, by: ({ versions }) => versions.length, cell: ({ versions }) => count(versions.length) },
  { name: 'Disk', right: true, by: ({ versions }) => versions[0]?.disk.size_bytes ?? 0, cell: ({ versions }) => (versions[0] ? size(versions[0].disk.size_bytes) : '–') },
  {
    name: 'Data',
    right: true,
    by: ({ versions }) => sum(versions, (version) => version.data_bytes),
    cell: ({ versions }) => size(sum(versions, (version) => version.data_bytes)),
  },
  {
    name: 'Stored',
    right: true,
    by: ({ versions }) => sum(versions, (version) => version.stored_bytes),
    cell: ({ versions }) => size(sum(versions, (version) => version.stored_bytes)),
  },
];

export function ImagesPage() {
  const look = useImages();
  const [dialog, open] = useTask();
  return (
    <PageOf title="Images" actions={<Button onClick={() => open(createImage())}>New image</Button>}>
      {dialog}
      <Seen look={look}>
        {({ images, store }) => {
          const versions = images.flatMap((row) => row.versions);
          return (
            <div className="splice-stack">
              {versions.length > 0 && (
                <Card>
                  <CardBody className="splice-figures">
                    <Figure name="Data of all versions" value={size(sum(versions, (version) => version.data_bytes))} about="each by itself" />
                    <Figure name="Stored" value={size(store.stored_bytes ?? 0)} about="each chunk once, compressed" />
                    <Figure name="Saved" value={ofStore(versions, store)} about="data over stored" />
                    <Figure name="Deleted, can be had back" value={count(store.deleted_versions ?? 0)} about="versions" />
                  </CardBody>
                </Card>
              )}
              <Box title="Images" flush>
                <List
                  label="Images"
                  rows={images}
                  columns={COLUMNS}
                  rowKey={({ image }) => image.name}
                  text={({ image, versions }) => `${image.name} ${versions[0]?.os ?? ''}`}
                  sorted={{ column: 0, direction: 'asc' }}
                  empty={
                    <Nothing title="No images yet" action={<Button onClick={() => open(createImage())}>New image</Button>}>
                      An image is a lineage of disks: each publish makes its next version, and branches fetch only what is new.
                    </Nothing>
                  }
                />
              </Box>
            </div>
          );
        }}
      </Seen>
    </PageOf>
  );
}
