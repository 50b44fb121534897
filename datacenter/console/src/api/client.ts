// One typed call of the management API. What may be called with what is in schema.ts, which is made of docs/api/openapi.json.
//
// Every failure is an `ApiFailure` with a sentence for people and, where there is one, the way out; nothing is tried again here.

import { credentials, refused } from '../session';
import type { Calls, ProblemCode } from './schema';

/** Longest that an answer is waited for, in milliseconds; long work is an operation and answers at once. */
const TIMEOUT_MS = 30_000;
/** Most items on a page; the API's own limit. */
const PAGE_MAX = 1000;

export type FailureCode = ProblemCode | 'unreachable';

/** Why a call did not work. */
export class ApiFailure extends Error {
  constructor(
    readonly code: FailureCode,
    message: string,
    readonly help?: string,
  ) {
    super(message);
    this.name = 'ApiFailure';
  }
}

/** What to pass: only those parts that the call has. */
export type Input<K extends keyof Calls> = {
  [Part in 'path' | 'query' | 'body' as Calls[K][Part] extends undefined
    ? never
    : keyof Calls[K][Part] extends never
      ? never
      : Part]: Calls[K][Part];
};

type Loose = { path?: Record<string, string | number>; query?: Record<string, string | number | undefined>; body?: unknown };

/** Fills `{name}` in a path and appends the query; absent parameters are left out. */
export function url(template: string, { path = {}, query = {} }: Loose): string {
  const filled = template.replace(/\{(\w+)\}/g, (_, name: string) => encodeURIComponent(String(path[name])));
  const search = new URLSearchParams();
  for (const [name, value] of Object.entries(query)) if (value !== undefined) search.set(name, String(value));
  return search.size > 0 ? `${filled}?${search}` : filled;
}

/** Calls the API. `signal` ends the call early, with the signal's reason. */
export async function call<K extends keyof Calls>(
  what: K,
  input: Input<K>,
  signal?: AbortSignal,
): Promise<Calls[K]['answer']> {
  const [method = '', template = ''] = what.split(' ');
  const { body, ...place } = input as Loose;
  const headers = new Headers({ Accept: 'application/json', ...credentials() });
  if (body !== undefined) headers.set('Content-Type', 'application/json');
  const limit = AbortSignal.timeout(TIMEOUT_MS);
  let response: Response;
  let text: string;
  try {
    response = await fetch(url(template, place), {
      method,
      headers,
      body: body === undefined ? null : JSON.stringify(body),
      signal: signal ? AbortSignal.any([signal, limit]) : limit,
      redirect: 'error',
    });
    text = await response.text();
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new ApiFailure(
      'unreachable',
      limit.aborted ? `the datacenter did not answer in ${TIMEOUT_MS / 1000} s` : 'the datacenter cannot be reached',
      'Check that splice-datacenter runs and that this machine reaches it.',
    );
  }
  if (response.ok) return (text === '' ? undefined : JSON.parse(text)) as Calls[K]['answer'];
  const failure = problem(response.status, text);
  if (failure.code === 'unauthenticated') refused(failure);
  throw failure;
}

/** What the body of an answer that is no success says; also where something between us and the datacenter wrote it. */
export function problem(status: number, text: string): ApiFailure {
  try {
    const said: unknown = JSON.parse(text);
    if (typeof said === 'object' && said !== null && 'error' in said && 'message' in said) {
      const help = 'help' in said && typeof said.help === 'string' ? said.help : undefined;
      return new ApiFailure(said.error as ProblemCode, String(said.message), help);
    }
  } catch {
    // Not JSON: a proxy's page, say.
  }
  const code = status === 401 ? 'unauthenticated' : status >= 500 ? 'unavailable' : 'unknown';
  return new ApiFailure(code, `the answer was HTTP ${status}, and not one of the datacenter's`);
}

type Page<Item, Next> = (limit: number, next: Next | undefined) => Promise<{ items: Item[]; next?: Next | null | undefined }>;

/** The first `most` items of a list that is continued with `after` or `before`, in whole pages, and whether there are more. */
export async function beginning<Item, Next>(page: Page<Item, Next>, most: number): Promise<{ items: Item[]; cut: boolean }> {
  const items: Item[] = [];
  let next: Next | undefined;
  do {
    const got: { items: Item[]; next?: Next | null | undefined } = await page(PAGE_MAX, next);
    items.push(...got.items);
    next = got.next ?? undefined;
  } while (next !== undefined && items.length < most);
  return { items, cut: next !== undefined };
}

/** All of a list. */
export async function everything<Item, Next>(page: Page<Item, Next>): Promise<Item[]> {
  return (await beginning(page, Infinity)).items;
}
