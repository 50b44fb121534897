// A table of things: sorted by a column, filtered by a word, a page at a time. All of the rows are here already.

import { Button, Pagination, SearchInput, Toolbar, ToolbarContent, ToolbarItem } from '@patternfly/react-core';
import type { ThProps } from '@patternfly/react-table';
import { Table, Tbody, Td, Th, Thead, Tr } from '@patternfly/react-table';
import type { ReactNode } from 'react';
import { useState } from 'react';

import { Nothing } from './seen';

export interface Column<T> {
  name: string;
  cell: (row: T) => ReactNode;
  /** What it is sorted by; a column without cannot be. */
  by?: (row: T) => string | number;
  /** Numbers stand at the right. */
  right?: boolean;
  /** Has no name on the page, only for screen readers: actions. */
  silent?: boolean;
}

interface Props<T> {
  label: string;
  rows: T[];
  columns: Column<T>[];
  rowKey: (row: T) => string | number;
  /** Text that the filter looks in; without there is no filter. */
  text?: (row: T) => string;
  /** What stands in place of the table if there are no rows at all. */
  empty: ReactNode;
  /** Further filters, beside the word's. */
  tools?: ReactNode;
  sorted?: { column: number; direction: 'asc' | 'desc' };
}

const PAGE_ROWS = 50;

export function compare(a: string | number, b: string | number): number {
  if (typeof a === 'number' && typeof b === 'number') return a - b;
  return String(a).localeCompare(String(b), 'en', { numeric: true });
}

export function List<T>({ label, rows, columns, rowKey, text, empty, tools, sorted }: Props<T>) {
  const [order, setOrder] = useState(sorted);
  const [word, setWord] = useState('');
  const [page, setPage] = useState(1);
  // The tools may be what hides every row: they stay.
  if (rows.length === 0 && !tools) return empty;

  const wanted = word.trim().toLowerCase();
  const found = text && wanted ? rows.filter((row) => text(row).toLowerCase().includes(wanted)) : [...rows];
  const by = order && columns[order.column]?.by;
  if (by) found.sort((a, b) => compare(by(a), by(b)) * (order.direction === 'asc' ? 1 : -1));
  const first = Math.min((page - 1) * PAGE_ROWS, Math.max(0, found.length - 1));
  const shown = found.slice(first - (first % PAGE_ROWS), first - (first % PAGE_ROWS) + PAGE_ROWS);

  const sort = (column: number): ThProps['sort'] => ({
    sortBy: order ? { index: order.column, direction: order.direction } : {},
    onSort: (_, index, direction) => setOrder({ column: index, direction }),
    columnIndex: column,
  });
  const pages = found.length > PAGE_ROWS && (
    <Pagination
      isCompact
      itemCount={found.length}
      perPage={PAGE_ROWS}
      page={page}
      perPageOptions={[]}
      onSetPage={(_, next) => setPage(next)}
      titles={{ paginationAriaLabel: `Pages of ${label}` }}
    />
  );

  return (
    <>
      {(text || tools || pages) && (rows.length > 5 || tools || wanted) && (
        <Toolbar className="splice-tools">
          <ToolbarContent>
            {text && (
              <ToolbarItem>
                <SearchInput
                  aria-label={`Filter ${label}`}
                  placeholder="Filter"
                  value={word}
                  onChange={(_, value) => {
                    setWord(value);
                    setPage(1);
                  }}
                  onClear={() => setWord('')}
                />
              </ToolbarItem>
            )}
            {tools}
            {pages && (
              <ToolbarItem variant="pagination" align={{ default: 'alignEnd' }}>
                {pages}
              </ToolbarItem>
            )}
          </ToolbarContent>
        </Toolbar>
      )}
      {rows.length === 0 ? (
        empty
      ) : found.length === 0 ? (
        <Nothing
          title="Nothing matches"
          action={
            <Button variant="link" onClick={() => setWord('')}>
              Clear the filter
            </Button>
          }
        />
      ) : (
        <div className="splice-scroll" tabIndex={0} role="region" aria-label={label}>
          <Table aria-label={label} variant="compact" gridBreakPoint="">
            <Thead>
              <Tr>
                {columns.map((column, index) => (
                  <Th
                    key={column.name}
                    className={column.right ? 'splice-right' : ''}
                    modifier="nowrap"
                    {...(column.by ? { sort: sort(index) } : {})}
                    {...(column.silent ? { screenReaderText: column.name } : {})}
                  >
                    {column.silent ? undefined : column.name}
                  </Th>
                ))}
              </Tr>
            </Thead>
            <Tbody>
              {shown.map((row) => (
                <Tr key={rowKey(row)}>
                  {columns.map((column) => (
                    <Td key={column.name} dataLabel={column.name} className={column.right ? 'splice-right' : ''} isActionCell={column.silent ?? false}>
                      {column.cell(row)}
                    </Td>
                  ))}
                </Tr>
              ))}
            </Tbody>
          </Table>
        </div>
      )}
    </>
  );
}
