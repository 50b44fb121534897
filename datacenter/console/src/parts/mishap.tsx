// Our own mistakes on a page: it says so, and the rest of the console goes on.

import { Button } from '@patternfly/react-core';
import type { ReactNode } from 'react';
import { Component } from 'react';

import { asFailure } from '../api/poll';
import { PageOf } from './page';
import { Failed } from './seen';

interface State {
  error?: unknown;
}

// React has no other way than a class.
export class Mishap extends Component<{ children: ReactNode }, State> {
  override state: State = {};

  static getDerivedStateFromError(error: unknown): State {
    return { error };
  }

  override render(): ReactNode {
    if (this.state.error === undefined) return this.props.children;
    return (
      <PageOf title="A defect of the console" actions={<Button onClick={() => location.reload()}>Load it again</Button>}>
        <Failed failure={asFailure(this.state.error)} />
      </PageOf>
    );
  }
}
