// The portal's calls. The session is a cookie that no script can read; what changes something repeats a word that only this page knows.

export interface Session {
  name: string;
  branch: string;
  csrf: string;
}

export type State = 'starting' | 'running' | 'served' | 'paused' | 'stopped' | 'failed';

export interface Desktop {
  pool: string;
  name: string;
  state: State | null;
  error: string | null;
  pooled: boolean | null;
  viewed: boolean;
}

export type Connection =
  | { state: 'ready'; ticket: string }
  | { state: 'starting' }
  | { state: 'waiting'; position: number; reason: string };

/** What the branch server refused, in its own words. */
export class Refused extends Error {
  constructor(
    readonly status: number,
    text: string,
  ) {
    super(text);
  }
}

let csrf = '';

async function call<T>(method: string, path: string, body?: unknown): Promise<T> {
  const headers: Record<string, string> = { 'x-splice-csrf': csrf };
  if (body !== undefined) headers['content-type'] = 'application/json';
  let answer: Response;
  try {
    answer = await fetch(path, { method, headers, body: body === undefined ? null : JSON.stringify(body) });
  } catch {
    throw new Refused(0, 'The branch server does not answer. Is this machine on the network?');
  }
  const text = await answer.text();
  if (answer.ok) return (text === '' ? undefined : JSON.parse(text)) as T;
  let says = text;
  try {
    says = (JSON.parse(text) as { error: string }).error;
  } catch {
    // Not of ours: shown as it is.
  }
  throw new Refused(answer.status, says);
}

export async function logIn(name: string, password: string, code: string): Promise<Session> {
  const session = await call<Session>('POST', '/v1/log-in', code === '' ? { name, password } : { name, password, code });
  csrf = session.csrf;
  return session;
}

export async function session(): Promise<Session> {
  const found = await call<Session>('GET', '/v1/session');
  csrf = found.csrf;
  return found;
}

export const logOut = () => call<void>('POST', '/v1/log-out');

export const desktops = async () => (await call<{ desktops: Desktop[] }>('GET', '/v1/desktops')).desktops;

const of = (pool: string) => `/v1/desktops/${encodeURIComponent(pool)}`;

export const connect = (pool: string) => call<Connection>('POST', `${of(pool)}/connect`);

export const power = (pool: string, action: 'shut_down' | 'power_off') => call<void>('POST', `${of(pool)}/power`, { action });

/** Opens a screen by its ticket. */
export const open = (ticket: string) => new WebSocket(`wss://${location.host}/v1/screen?ticket=${encodeURIComponent(ticket)}`);
