// Who is signed in. The one module that knows how: today a bearer token that somebody pastes; accounts and sessions come here.
//
// The token lives in this tab's session storage: it survives a reload, ends with the tab, and no other origin or tab has it. The page's
// policy lets no foreign script run, so what could read it from here could as well call the API itself. Nothing else keeps it.

import { useSyncExternalStore } from 'react';

const KEY = 'splice.token';

export interface Session {
  signedIn: boolean;
  /** Why the last session ended, if the datacenter ended it. */
  ended?: string;
}

type Reader = Pick<Storage, 'getItem' | 'setItem' | 'removeItem'>;

const storage: Reader | undefined = typeof sessionStorage === 'undefined' ? undefined : sessionStorage;
const listeners = new Set<() => void>();
let token = storage?.getItem(KEY) ?? null;
let session: Session = { signedIn: token !== null };

function change(next: string | null, ended?: string): void {
  token = next;
  if (next === null) storage?.removeItem(KEY);
  else storage?.setItem(KEY, next);
  session = ended === undefined ? { signedIn: next !== null } : { signedIn: next !== null, ended };
  for (const listener of listeners) listener();
}

/** Headers that say who asks. */
export function credentials(): Record<string, string> {
  return token === null ? {} : { Authorization: `Bearer ${token}` };
}

/** Signs in with a token if the datacenter knows it. `probe` makes one call with it and throws what is wrong. */
export async function signIn(pasted: string, probe: () => Promise<unknown>): Promise<void> {
  const before = session;
  token = pasted.trim();
  try {
    await probe();
  } catch (error) {
    token = null;
    session = before;
    throw error;
  }
  change(token);
}

export function signOut(): void {
  change(null);
}

/** The datacenter does not know the token (any more). While signing in, the form says so itself. */
export function refused(why: { message: string }): void {
  if (session.signedIn) change(null, why.message);
}

/** The session, and a new look whenever it changes. */
export function useSession(): Session {
  return useSyncExternalStore(
    (listener) => {
      listeners.add(listener);
      return () => listeners.delete(listener);
    },
    () => session,
  );
}
