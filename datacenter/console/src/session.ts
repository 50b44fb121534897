// Who is signed in. The one module that knows how: somebody with an account, or the bearer of a token that was pasted.
//
// An account's session is a cookie that no script can read; what is kept here is the word that requests must repeat to change something, which is
// worth nothing without the cookie. It and tokens live in this tab's session storage: they survive a reload, end with the tab, and no other origin or
// tab has them. The page's policy lets no foreign script run, so what could read them from here could as well call the API itself.

import { useSyncExternalStore } from 'react';

const TOKEN = 'splice.token';
const CSRF = 'splice.csrf';

export interface Session {
  signedIn: boolean;
  /** Why the last session ended, if the datacenter ended it. */
  ended?: string;
}

/** What shows who asks. */
interface Proof {
  by: typeof TOKEN | typeof CSRF;
  word: string;
}

type Reader = Pick<Storage, 'getItem' | 'setItem' | 'removeItem'>;

const storage: Reader | undefined = typeof sessionStorage === 'undefined' ? undefined : sessionStorage;
const listeners = new Set<() => void>();
let proof: Proof | null = kept(TOKEN) ?? kept(CSRF);
let session: Session = { signedIn: proof !== null };
/** Whether anybody was signed in since the page was loaded. */
let wasSignedIn = session.signedIn;

function kept(by: Proof['by']): Proof | null {
  const word = storage?.getItem(by) ?? null;
  return word === null ? null : { by, word };
}

function change(next: Proof | null, ended?: string): void {
  proof = next;
  wasSignedIn ||= next !== null;
  for (const by of [TOKEN, CSRF]) storage?.removeItem(by);
  if (next !== null) storage?.setItem(next.by, next.word);
  session = ended === undefined ? { signedIn: next !== null } : { signedIn: next !== null, ended };
  for (const listener of listeners) listener();
}

/** Headers that say who asks. */
export function credentials(): Record<string, string> {
  if (proof === null) return {};
  return proof.by === TOKEN ? { Authorization: `Bearer ${proof.word}` } : { 'X-Splice-Csrf': proof.word };
}

/** Signs in with a token if the datacenter knows it. `probe` makes one call with it and throws what is wrong. */
export async function signIn(pasted: string, probe: () => Promise<unknown>): Promise<void> {
  const before = session;
  const tried: Proof = { by: TOKEN, word: pasted.trim() };
  proof = tried;
  try {
    await probe();
  } catch (error) {
    proof = null;
    session = before;
    throw error;
  }
  change(tried);
}

/** Takes up the session of a cookie that the browser has. `ask` gets it, or throws why there is none. */
export async function takeUp(ask: () => Promise<{ csrf?: string | null }>): Promise<void> {
  const { csrf } = await ask();
  if (csrf) change({ by: CSRF, word: csrf });
}

/** Takes up what another tab of this browser may have begun. Whoever signed out here is not brought back: the end of that session may be under way. */
export async function find(ask: () => Promise<{ csrf?: string | null }>): Promise<void> {
  // That there is none is no failure.
  if (!wasSignedIn) await takeUp(ask).catch(() => undefined);
}

/** Signs out. `leave` ends the session at the datacenter, where there is one of a cookie; its end is not waited for. */
export function signOut(leave?: () => Promise<unknown>): void {
  // Asked for while the word is still known.
  if (proof?.by === CSRF) leave?.().catch(() => undefined);
  change(null);
}

/** The datacenter does not know who asks (any more). While signing in, the form says so itself. */
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
