// Judgements about branches: what a branch did not tell is never good.

import { expect, test } from 'vitest';

import { BRANCHES } from '../../fixtures/branches';
import { NOW } from '../../fixtures/numbers';
import { VOLUMES } from '../../fixtures/volumes';
import type { Branch } from '../api/schema';
import { cacheHits, concerns, lag, link, poolReady, ready, received } from './fleet';

const named = (name: string): Branch => structuredClone(BRANCHES.find((one) => one.name === name)!);

test('every state of a branch has a word', () => {
  expect(BRANCHES.map((branch) => link(branch).word)).toEqual(expect.arrayContaining(['Up', 'Down', 'Invited', 'Revoked']));
});

test('a branch is ready when each of its pools said so of the version that it runs now', () => {
  const branch = named('berlin');
  expect(ready(branch)).toEqual({ tone: 'good', word: 'Ready' });
  branch.pools[0]!.version_id = 'another';
  expect(ready(branch)).toMatchObject({ tone: 'warn', why: 'office: the branch does not have the version yet' });
  branch.status!.readiness = null;
  expect(poolReady(branch, branch.pools[0]!)).toMatchObject({ tone: 'warn', why: 'its branch server is older' });
  branch.status = null;
  expect(ready(branch).tone).toBe('warn');
  branch.pools = [];
  expect(ready(branch)).toMatchObject({ tone: 'quiet', word: 'No pools' });
});

test('one pool that does not boot outweighs one that nobody knows of', () => {
  const branch = named('berlin');
  branch.status!.readiness!.pools![0]!.boots = 'unknown';
  expect(ready(branch)).toMatchObject({ tone: 'warn', word: 'Unknown' });
  branch.status!.readiness!.pools![1]!.boots = 'no';
  expect(ready(branch)).toMatchObject({ tone: 'bad', word: 'Not ready' });
});

test('what is behind: orders first, then a report that is old, then what users wrote', () => {
  expect(lag(named('pune'), VOLUMES, NOW)).toMatchObject({ tone: 'warn', word: 'Orders' });
  const branch = named('berlin');
  branch.status!.reported_unix_s = NOW - 600;
  expect(lag(branch, VOLUMES, NOW)).toMatchObject({ tone: 'warn', word: '10 min' });
  branch.status!.reported_unix_s = NOW;
  expect(lag(branch, [], NOW)).toMatchObject({ tone: 'good', word: 'None' });
  expect(lag(branch, undefined, NOW)).toMatchObject({ tone: 'quiet', why: expect.stringContaining('its own page') });
  expect(lag(named('lagos'), VOLUMES, NOW)).toMatchObject({ tone: 'bad', word: '3 h 7 min' });
  branch.status = null;
  expect(lag(branch, VOLUMES, NOW).tone).toBe('warn');
});

test('what wants attention is told of branches that joined, and of no others', () => {
  const all = new Map(BRANCHES.map((branch) => [branch.name, concerns(branch, NOW)]));
  expect(all.get('berlin')).toEqual([]);
  expect(all.get('lagos')).toEqual(['its link is down']);
  expect(all.get('lima')).toEqual(['3 damaged chunks in its cache, not fetched again yet']);
  expect(all.get('oslo')).toEqual(['its certificate ends in 6 d']);
  expect(all.get('riga')).toEqual([]);
  expect(all.get('turin')).toEqual([]);
  const branch = named('berlin');
  branch.ahead = { counter: 40, lost_pools: ['design'] };
  expect(concerns(branch, NOW)[0]).toMatch(/assignment 40.*assign or remove design/);
});

test('figures of branches that have not told are no figures', () => {
  const branch = named('berlin');
  branch.status = null;
  expect(cacheHits(branch)).toBeUndefined();
  expect(received([branch])).toBe(0);
});
