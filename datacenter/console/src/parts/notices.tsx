// What happened just now, told once: shown in a corner, and read out by screen readers.

import { Alert, AlertActionCloseButton, AlertGroup } from '@patternfly/react-core';
import type { ReactNode } from 'react';
import { createContext, useCallback, useContext, useMemo, useState } from 'react';

interface Notice {
  id: number;
  text: string;
  variant: 'success' | 'warning' | 'info';
  more?: ReactNode;
}

type Tell = (text: string, variant?: Notice['variant'], more?: ReactNode) => void;

const SHOWN_MS = 8000;
const Context = createContext<Tell>(() => undefined);

/** Tells something. */
export const useTell = (): Tell => useContext(Context);

let last = 0;

export function Notices({ children }: { children: ReactNode }) {
  const [notices, setNotices] = useState<Notice[]>([]);
  const drop = useCallback((id: number) => setNotices((all) => all.filter((notice) => notice.id !== id)), []);
  const tell: Tell = useCallback((text, variant = 'success', more) => {
    last += 1;
    const notice = { id: last, text, variant, more };
    setNotices((all) => [...all, notice]);
  }, []);
  return (
    <Context.Provider value={useMemo(() => tell, [tell])}>
      {children}
      <AlertGroup isToast isLiveRegion aria-label="Notices">
        {notices.map(({ id, text, variant, more }) => (
          <Alert
            key={id}
            component="p"
            variant={variant}
            title={text}
            timeout={SHOWN_MS}
            onTimeout={() => drop(id)}
            actionClose={<AlertActionCloseButton onClose={() => drop(id)} />}
          >
            {more}
          </Alert>
        ))}
      </AlertGroup>
    </Context.Provider>
  );
}
