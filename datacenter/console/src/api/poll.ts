// Things of the API on a page, looked at again and again while somebody can see them.
//
// What was seen last stays on the page while a look fails; the page says since when. Looks never overlap. The API has no events to
// subscribe to; were there any, this is the module that would.

import { useCallback, useEffect, useRef, useState } from 'react';

import { ApiFailure } from './client';

/** Slowest pace while looks fail, in milliseconds. */
const BACKOFF_MAX_MS = 60_000;

/** What a page has of something. */
export interface Look<T> {
  /** Seen last, if anything was. */
  data: T | undefined;
  /** Why the last look failed, if it did. */
  failure: ApiFailure | undefined;
  /** When `data` was seen, in milliseconds of the clock. */
  seenAt: number | undefined;
  /** Looks again now. */
  again: () => void;
}

/** At most one part in so many of the time is spent looking: a large fleet is looked at less often, by itself. */
const REST = 20;

/** How long to wait for the next look: the pace, longer after one that took long, doubled with each failure in a row. */
export function pause(paceMs: number, failures: number, tookMs = 0): number {
  if (failures === 0) return Math.max(paceMs, tookMs * REST);
  return Math.min(paceMs * 2 ** failures, Math.max(BACKOFF_MAX_MS, paceMs));
}

/** Makes a failure of anything that was thrown: our own mistakes are shown, never swallowed. */
export function asFailure(error: unknown): ApiFailure {
  if (error instanceof ApiFailure) return error;
  return new ApiFailure('internal', error instanceof Error ? error.message : String(error));
}

/**
 * Looks with `look` at once, whenever `key` changes, and every `paceMs` while the tab is visible. `pace` may depend on what was
 * seen; `null` ends it.
 */
export function useLook<T>(
  key: string,
  look: (signal: AbortSignal) => Promise<T>,
  pace: number | ((data: T) => number | null),
): Look<T> {
  const [state, setState] = useState<{ key: string } & Omit<Look<T>, 'again'>>({
    key,
    data: undefined,
    failure: undefined,
    seenAt: undefined,
  });
  // The newest closures, without beginning anew for each render's.
  const latest = useRef({ look, pace });
  latest.current = { look, pace };
  const wake = useRef<() => void>(() => undefined);

  useEffect(() => {
    const ended = new AbortController();
    let timer: ReturnType<typeof setTimeout> | undefined;
    let failures = 0;
    let looking = false;
    let asked = false;

    const run = async (): Promise<void> => {
      clearTimeout(timer);
      if (looking) {
        asked = true;
        return;
      }
      looking = true;
      asked = false;
      let next: number | null;
      const began = performance.now();
      try {
        const data = await latest.current.look(ended.signal);
        if (ended.signal.aborted) return;
        failures = 0;
        setState({ key, data, failure: undefined, seenAt: Date.now() });
        const { pace } = latest.current;
        const wanted = typeof pace === 'function' ? pace(data) : pace;
        next = wanted === null ? null : pause(wanted, 0, performance.now() - began);
      } catch (error) {
        if (ended.signal.aborted) return;
        const failure = asFailure(error);
        setState((last) => ({ key, data: last.key === key ? last.data : undefined, failure, seenAt: last.key === key ? last.seenAt : undefined }));
        failures += 1;
        const { pace } = latest.current;
        next = failure.code === 'not_found' ? null : pause(typeof pace === 'function' ? 5_000 : pace, failures);
      } finally {
        looking = false;
      }
      if (asked) next = 0;
      if (next !== null) timer = setTimeout(() => !document.hidden && void run(), next);
    };

    const seen = (): void => void (document.hidden || run());
    wake.current = () => void run();
    document.addEventListener('visibilitychange', seen);
    void run();
    return () => {
      ended.abort();
      clearTimeout(timer);
      document.removeEventListener('visibilitychange', seen);
    };
  }, [key]);

  const again = useCallback(() => wake.current(), []);
  // What was seen under another key is not this thing's.
  if (state.key !== key) return { data: undefined, failure: undefined, seenAt: undefined, again };
  return { data: state.data, failure: state.failure, seenAt: state.seenAt, again };
}
