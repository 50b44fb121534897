// One operation: how far it is, and what came of it.

import { Alert, Button } from '@patternfly/react-core';
import type { ReactNode } from 'react';

import { call } from '../api/client';
import { useOperation } from '../api/looks';
import type { Operation } from '../api/schema';
import { kind, outcome, state, took } from '../model/work';
import { count, sentence, size } from '../model/units';
import type { Fact } from '../parts/facts';
import { Box, Facts } from '../parts/facts';
import { Bar } from '../parts/operations';
import { PageOf } from '../parts/page';
import { Seen } from '../parts/seen';
import { useTask } from '../parts/task';
import { Ago, useNow } from '../parts/time';
import { VerdictLabel } from '../parts/verdict';
import { Link, to } from '../router';

/** A field's name for people: `known_chunks` becomes `Known chunks`. */
function words(name: string): string {
  const plain = name.replace(/_(bytes|unix_s|s)$/, '').replaceAll('_', ' ');
  return plain.charAt(0).toUpperCase() + plain.slice(1);
}

function value(name: string, is: unknown): ReactNode {
  if (is === null || is === undefined || is === '') return undefined;
  if (typeof is === 'boolean') return is ? 'yes' : 'no';
  if (typeof is === 'number') return /bytes$/.test(name) ? size(is) : count(is);
  if (typeof is === 'string') return is;
  if (Array.isArray(is) && is.length > 0 && is.every((one) => typeof one === 'string')) return is.join(', ');
  return undefined;
}

/** Every plain field of a result, in the order in which the datacenter tells them. */
function facts(operation: Operation): Fact[] {
  const [result] = Object.values(operation.result ?? {}) as Record<string, unknown>[];
  return Object.entries(result ?? {})
    .map(([name, is]): Fact => {
      const shown = value(name, is);
      return shown === undefined ? false : [words(name), shown];
    })
    .filter((fact) => fact !== false);
}

/** Damaged pieces that a verify or scrub found, one line each. */
function Damage({ operation: { result } }: { operation: Operation }) {
  if (!result) return null;
  const items =
    'verify' in result
      ? result.verify.damaged.map((one) => `${one.tree}, at ${count(one.disk_offset)}: ${one.reason} (${one.id})`)
      : 'scrub' in result
        ? (result.scrub.items ?? []).map((one) => `${one.kind} ${one.id}, shown by ${(one.versions ?? []).join(', ') || 'no version'}`)
        : [];
  if (items.length === 0) return null;
  return (
    <Alert isInline component="h2" variant="danger" title="What it found damaged">
      <ul>
        {items.map((item) => (
          <li key={item} className="splice-long">
            {item}
          </li>
        ))}
      </ul>
      <p>Branches that hold it are asked for it; publishing the same disk again stores it anew.</p>
    </Alert>
  );
}

function Whole({ operation }: { operation: Operation }) {
  const now = useNow();
  const result = facts(operation);
  const published = operation.result && 'publish' in operation.result ? operation.result.publish : undefined;
  return (
    <div className="splice-stack" aria-live="off">
      {operation.error && (
        <Alert isInline component="h2" variant="danger" title={sentence(operation.error.message)}>
          {operation.error.help && sentence(operation.error.help)}
        </Alert>
      )}
      <Damage operation={operation} />
      <Box title="Progress">
        <Facts
          of={[
            ['State', <VerdictLabel key="state" of={state(operation)} />],
            ['Of', operation.subject],
            ['How far', operation.state === 'running' ? <Bar key="bar" operation={operation} /> : outcome(operation) || '–'],
            ['Started', <Ago key="started" at={operation.started_unix_s} />],
            [operation.state === 'running' ? 'At it for' : 'Took', took(operation, now)],
          ]}
        />
      </Box>
      {result.length > 0 && (
        <Box
          title="What came of it"
          actions={published && <Link page={to('images', published.image, published.number)}>{`${published.image}@${published.number}`}</Link>}
        >
          <Facts of={result} />
        </Box>
      )}
    </div>
  );
}

export function OperationPage({ id }: { id: string }) {
  // An id that is no number is one that does not exist.
  const number = /^\d{1,15}$/.test(id) ? Number(id) : 0;
  const look = useOperation(number);
  const [dialog, open] = useTask();
  const operation = look.data;
  const cancel = (): void =>
    open({
      title: `Stop operation ${id}`,
      danger: true,
      verb: 'Stop it',
      about: <p>It fails soon after. What it has stored already is used again if it is started anew, and collected as garbage if not.</p>,
      run: async () => {
        await call('POST /v1/operations/{id}/cancel', { path: { id: number } });
        look.again();
      },
    });
  return (
    <PageOf
      title={operation ? `${kind(operation)} #${id}` : `Operation #${id}`}
      above={[['Operations', '/operations']]}
      mark={operation && <VerdictLabel of={state(operation)} />}
      actions={
        operation?.state === 'running' && (
          <Button variant="secondary" isDanger onClick={cancel}>
            Stop
          </Button>
        )
      }
    >
      {dialog}
      <Seen look={look}>{(seen) => <Whole operation={seen} />}</Seen>
    </PageOf>
  );
}
