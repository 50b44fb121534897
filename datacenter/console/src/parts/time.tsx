// Times on pages: how long ago, with the moment itself in a title; all of them move on together.

import { useSyncExternalStore } from 'react';

import { ago, until } from '../model/units';

const TICK_MS = 1000;
const listeners = new Set<() => void>();
let now = Math.floor(Date.now() / 1000);
let timer: ReturnType<typeof setInterval> | undefined;

function listen(listener: () => void): () => void {
  listeners.add(listener);
  timer ??= setInterval(() => {
    now = Math.floor(Date.now() / 1000);
    for (const each of listeners) each();
  }, TICK_MS);
  return () => {
    listeners.delete(listener);
    if (listeners.size === 0) {
      clearInterval(timer);
      timer = undefined;
    }
  };
}

/** The time in unix seconds, each second anew. */
export function useNow(): number {
  return useSyncExternalStore(listen, () => now);
}

function Moment({ unixS, words }: { unixS: number; words: (unixS: number, nowS: number) => string }) {
  const at = new Date(unixS * 1000);
  return (
    <time dateTime={at.toISOString()} title={at.toLocaleString()}>
      {words(unixS, useNow())}
    </time>
  );
}

/** A time that was; `–` for none. */
export function Ago({ at }: { at: number | null | undefined }) {
  return at ? <Moment unixS={at} words={ago} /> : <>–</>;
}

/** A time to come; `–` for none. */
export function Until({ at }: { at: number | null | undefined }) {
  return at ? <Moment unixS={at} words={until} /> : <>–</>;
}
