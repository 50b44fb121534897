// What a page shows of a thing that is looked at: that it comes, that it cannot be had, that it is old, or it.

import { Alert, Bullseye, Button, EmptyState, EmptyStateActions, EmptyStateBody, EmptyStateFooter, Spinner } from '@patternfly/react-core';
import SearchIcon from '@patternfly/react-icons/dist/esm/icons/search-icon';
import CubesIcon from '@patternfly/react-icons/dist/esm/icons/cubes-icon';
import type { ReactNode } from 'react';

import type { ApiFailure } from '../api/client';
import type { Look } from '../api/poll';
import { ago, sentence } from '../model/units';
import { useNow } from './time';

/** A failure in a page's place. */
export function Failed({ failure, again }: { failure: ApiFailure; again?: () => void }) {
  const missing = failure.code === 'not_found';
  return (
    <EmptyState
      titleText={missing ? 'There is no such thing' : 'This cannot be shown now'}
      headingLevel="h2"
      {...(missing ? { icon: SearchIcon } : { status: 'danger' as const })}
      role="alert"
    >
      <EmptyStateBody>
        <p>{sentence(failure.message)}</p>
        {failure.help && <p>{sentence(failure.help)}</p>}
      </EmptyStateBody>
      {again && !missing && (
        <EmptyStateFooter>
          <EmptyStateActions>
            <Button onClick={again}>Try again</Button>
          </EmptyStateActions>
        </EmptyStateFooter>
      )}
    </EmptyState>
  );
}

/** That there is nothing, and how that changes. */
export function Nothing({ title, children, action }: { title: string; children?: ReactNode; action?: ReactNode }) {
  return (
    <EmptyState titleText={title} headingLevel="h2" icon={CubesIcon} variant="sm">
      {children && <EmptyStateBody>{children}</EmptyStateBody>}
      {action && (
        <EmptyStateFooter>
          <EmptyStateActions>{action}</EmptyStateActions>
        </EmptyStateFooter>
      )}
    </EmptyState>
  );
}

/** What was seen while it cannot be looked at again. */
function Old({ failure, seenAt, again }: { failure: ApiFailure; seenAt: number; again: () => void }) {
  const now = useNow();
  return (
    <Alert
      isInline
      component="p"
      variant="warning"
      title={`What you see is from ${ago(Math.floor(seenAt / 1000), now)}: ${failure.message}`}
      className="splice-old"
      actionLinks={
        <Button variant="link" isInline onClick={again}>
          Try again
        </Button>
      }
    />
  );
}

export function Seen<T>({ look, children }: { look: Look<T>; children: (data: T) => ReactNode }) {
  const { data, failure, seenAt, again } = look;
  if (data === undefined) {
    if (failure) return <Failed failure={failure} again={again} />;
    return (
      <Bullseye className="splice-wait">
        <Spinner aria-label="Loading" />
      </Bullseye>
    );
  }
  return (
    <>
      {failure && seenAt !== undefined && <Old failure={failure} seenAt={seenAt} again={again} />}
      {children(data)}
    </>
  );
}
