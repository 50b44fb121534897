// One call: addresses, bodies, and every way in which an answer can be no success.

import { afterEach, beforeEach, expect, test, vi } from 'vitest';

import { credentials, signIn, signOut, takeUp } from '../session';
import { ApiFailure, beginning, call, everything, problem, url } from './client';
import { asFailure, pause } from './poll';

const fetched = vi.fn<typeof fetch>();

beforeEach(() => vi.stubGlobal('fetch', fetched));
afterEach(() => {
  vi.unstubAllGlobals();
  fetched.mockReset();
  signOut();
});

const answers = (status: number, body: string): void => void fetched.mockImplementation(async () => new Response(body, { status }));

test('names in an address cannot leave it', () => {
  expect(url('/v1/images/{image}/versions/{number}', { path: { image: '../a b', number: 3 } })).toBe('/v1/images/..%2Fa%20b/versions/3');
  expect(url('/v1/branches', { query: { limit: 5, after: undefined } })).toBe('/v1/branches?limit=5');
  expect(url('/v1/branches', {})).toBe('/v1/branches');
});

test('a call sends the token and the body, and gives what came', async () => {
  answers(200, '{"images":0}');
  await signIn('  splice-api-1.abc\n', () => call('GET /v1/status', {}));
  answers(201, '{"name":"debian"}');
  expect(await call('POST /v1/images', { body: { name: 'debian' } })).toEqual({ name: 'debian' });
  const [address, init] = fetched.mock.lastCall!;
  expect(address).toBe('/v1/images');
  expect(init).toMatchObject({ method: 'POST', body: '{"name":"debian"}', redirect: 'error' });
  expect(new Headers(init?.headers).get('authorization')).toBe('Bearer splice-api-1.abc');
});

test('no content is no answer, and no error', async () => {
  fetched.mockImplementation(async () => new Response(null, { status: 204 }));
  expect(await call('DELETE /v1/branches/{branch}/pools/{pool}', { path: { branch: 'a', pool: 'b' } })).toBeUndefined();
});

test('a problem keeps its words; another’s page does not become one', () => {
  expect(problem(409, '{"error":"conflict","message":"in use","help":"stop it"}')).toMatchObject({ code: 'conflict', message: 'in use', help: 'stop it' });
  expect(problem(502, '<html>bad gateway</html>')).toMatchObject({ code: 'unavailable', message: expect.stringContaining('502') });
  expect(problem(401, '')).toMatchObject({ code: 'unauthenticated' });
  expect(problem(418, '[]')).toMatchObject({ code: 'unknown' });
});

test('a token that is refused is not kept, and one that stops being known ends the session', async () => {
  answers(401, '{"error":"unauthenticated","message":"the token is not known here"}');
  await expect(signIn('guessed', () => call('GET /v1/status', {}))).rejects.toMatchObject({ code: 'unauthenticated' });
  expect(credentials()).toEqual({});
  answers(200, '{}');
  await signIn('known', () => call('GET /v1/status', {}));
  expect(credentials()).toEqual({ Authorization: 'Bearer known' });
  answers(401, '{"error":"unauthenticated","message":"the token is not known here"}');
  await expect(call('GET /v1/status', {})).rejects.toBeInstanceOf(ApiFailure);
  expect(credentials()).toEqual({});
});

test('a session of a cookie repeats its word, and is ended where it was begun', async () => {
  answers(200, '{"who":"noam","roles":[],"csrf":"12ab"}');
  await takeUp(() => call('POST /v1/log-in', { body: { name: 'noam', password: 'x' } }));
  expect(credentials()).toEqual({ 'X-Splice-Csrf': '12ab' });
  fetched.mockImplementation(async () => new Response(null, { status: 204 }));
  signOut(() => call('POST /v1/log-out', {}));
  const [address, init] = fetched.mock.lastCall!;
  expect(address).toBe('/v1/log-out');
  expect(new Headers(init?.headers).get('x-splice-csrf')).toBe('12ab');
  expect(credentials()).toEqual({});
});

test('a datacenter that is away says so; a call that was given up says nothing', async () => {
  fetched.mockRejectedValue(new TypeError('Failed to fetch'));
  await expect(call('GET /v1/status', {})).rejects.toMatchObject({ code: 'unreachable' });
  const given = new AbortController();
  given.abort();
  await expect(call('GET /v1/status', {}, given.signal)).rejects.not.toBeInstanceOf(ApiFailure);
});

test('all pages are asked for, each with where the last one ended', async () => {
  const asked: (string | undefined)[] = [];
  const all = await everything(async (_, next: string | undefined) => {
    asked.push(next);
    return next === 'b' ? { items: [3], next: null } : { items: next ? [2] : [1], next: next ? 'b' : 'a' };
  });
  expect(all).toEqual([1, 2, 3]);
  expect(asked).toEqual([undefined, 'a', 'b']);
});

test('a list that may be endless is looked at up to a limit, and says that it is cut', async () => {
  const page = async (_: number, next: number | undefined) => ({ items: [0, 0, 0], next: (next ?? 0) + 1 });
  expect(await beginning(page, 6)).toEqual({ items: [0, 0, 0, 0, 0, 0], cut: true });
  expect(await beginning(async () => ({ items: [1], next: null }), 6)).toEqual({ items: [1], cut: false });
});

test('looks that fail become rarer, to a limit; what is slow stays so', () => {
  expect([0, 1, 2, 9].map((failures) => pause(1000, failures))).toEqual([1000, 2000, 4000, 60_000]);
  expect(pause(120_000, 3)).toBe(120_000);
  // A look that took two seconds is not made again before forty have passed.
  expect(pause(5000, 0, 100)).toBe(5000);
  expect(pause(5000, 0, 2000)).toBe(40_000);
  expect(asFailure(new Error('ours'))).toMatchObject({ code: 'internal', message: 'ours' });
});
