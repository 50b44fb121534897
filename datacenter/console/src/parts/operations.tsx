// Operations in a table, with their progress.

import { Progress, ProgressMeasureLocation } from '@patternfly/react-core';

import type { Operation } from '../api/schema';
import { done, figures, kind, outcome, phase, state, took } from '../model/work';
import { Link, to } from '../router';
import type { Column } from './list';
import { List } from './list';
import { Nothing } from './seen';
import { Ago, useNow } from './time';
import { VerdictLabel } from './verdict';

/** How far it is: a bar while that is known, words always. */
export function Bar({ operation }: { operation: Operation }) {
  const share = done(operation.progress);
  const words = `${phase(operation.progress)}${figures(operation.progress) ? `: ${figures(operation.progress)}` : ''}`;
  if (share === undefined) return <>{words}</>;
  return (
    <div className="splice-progress">
      <Progress value={share} measureLocation={ProgressMeasureLocation.outside} aria-label={`${kind(operation)} ${operation.subject}`} size="sm" />
      <div className="splice-subtle">{words}</div>
    </div>
  );
}

function Took({ operation }: { operation: Operation }) {
  return <>{took(operation, useNow())}</>;
}

const COLUMNS: Column<Operation>[] = [
  { name: 'Operation', by: (one) => one.id, cell: (one) => <Link page={to('operations', one.id)}>{`${kind(one)} #${one.id}`}</Link> },
  { name: 'Of', by: (one) => one.subject, cell: (one) => one.subject },
  { name: 'State', by: (one) => one.state, cell: (one) => <VerdictLabel of={state(one)} /> },
  { name: 'How far', cell: (one) => (one.state === 'running' ? <Bar operation={one} /> : outcome(one) || '–') },
  { name: 'Started', right: true, by: (one) => one.started_unix_s, cell: (one) => <Ago at={one.started_unix_s} /> },
  { name: 'Took', right: true, by: (one) => (one.finished_unix_s ?? Infinity) - one.started_unix_s, cell: (one) => <Took operation={one} /> },
];

export function OperationList({ operations }: { operations: Operation[] }) {
  return (
    <List
      label="Operations"
      rows={operations}
      columns={COLUMNS}
      rowKey={(one) => one.id}
      text={(one) => `${kind(one)} ${one.subject} ${one.state} ${outcome(one)}`}
      sorted={{ column: 0, direction: 'desc' }}
      empty={<Nothing title="No operations yet">Publishing, verifying, scrubbing, backing up: all that takes long is here, with its progress.</Nothing>}
    />
  );
}
