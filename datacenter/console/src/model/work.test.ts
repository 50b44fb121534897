// Operations in words: every kind and phase of the API has its own, damage is no success, and a lost field is no crash.

import { expect, test } from 'vitest';

import { ENDED, running, STORE } from '../../fixtures/operations';
import { VERSIONS } from '../../fixtures/images';
import { VOLUMES, snapshots } from '../../fixtures/volumes';
import { NOW } from '../../fixtures/numbers';
import { ofRollBack } from './loss';
import { ofStore, ofVersion, parentOf, ratio } from './saving';
import { damage, done, figures, kind, outcome, pace, phase, state, took } from './work';

test('what came of each kind fits a line', () => {
  for (const operation of ENDED) {
    expect(kind(operation)).toMatch(/^[A-Z]/);
    expect(outcome(operation), operation.kind).not.toBe('');
    expect(outcome(operation), operation.kind).not.toMatch(/undefined|NaN/);
  }
});

test('an operation that found damage has not simply succeeded', () => {
  const scrub = ENDED.find((one) => one.kind === 'scrub')!;
  expect(damage(scrub)).toBe(1);
  expect(state(scrub)).toMatchObject({ tone: 'bad', word: 'Found damage' });
  expect(state(ENDED.find((one) => one.state === 'failed')!)).toMatchObject({ tone: 'bad', word: 'Failed' });
});

test('progress is in the units of its phase', () => {
  const at = running(0);
  expect(done(at.progress)).toBe(29);
  expect(figures(at.progress)).toMatch(/^1\.17 GiB of 3\.90 GiB; /);
  expect(figures({ ...at.progress, phase: 'mark', done_bytes: 3, total_bytes: 40, new_chunks: 0, known_chunks: 0 })).toBe('3 of 40 trees');
  expect(done({ ...at.progress, total_bytes: 0 })).toBeUndefined();
  expect(done({ ...at.progress, done_bytes: 99, total_bytes: 9 })).toBe(100);
  expect(phase(at.progress)).toBe('chunking and storing');
});

test('lists are looked at more often while something runs', () => {
  expect(pace(ENDED)).toBeGreaterThan(pace([running(0), ...ENDED]));
  expect(took(ENDED[0]!, NOW)).toBe('5 min 40 s');
});

test('a roll-back says what is lost', () => {
  const held = { ...VOLUMES.find((one) => one.lease && one.kind === 'system')!, lag_records: 12 };
  const [first, , , fourth] = snapshots();
  const loss = ofRollBack(held, fourth!, NOW);
  expect(loss).toMatchObject({ seconds: 15 * 3600, held: true });
  expect(loss.sentences.join(' ')).toMatch(/15 h of work.*becomes a fork.*12 records.*stays as a snapshot/);
  const unknown = ofRollBack({ ...held, lag_records: null }, fourth!, NOW);
  expect(unknown.sentences.join(' ')).toMatch(/nobody knows/);
  const idle = ofRollBack({ ...held, lease: null, applied_unix_s: fourth!.sealed_unix_s + 60 }, fourth!, NOW);
  expect(idle).toMatchObject({ seconds: 60, held: false });
  expect(idle.sentences).toHaveLength(2);
  // The first snapshot shows what the volume began with: all of it goes.
  expect(ofRollBack({ ...held, lease: null }, first!, NOW).sentences[0]).toMatch(/^All that was ever written/);
});

test('what the store saves', () => {
  expect(ratio(10, 0)).toBe('–');
  expect(ratio(26.6, 10)).toBe('2.7 : 1');
  expect(ofVersion(VERSIONS[0]!)).toBe('27 : 1');
  expect(ofStore(VERSIONS, STORE)).toMatch(/^\d\.\d : 1$/);
  expect(parentOf(VERSIONS[0]!, VERSIONS)?.number).toBe(6);
  expect(parentOf(VERSIONS[6]!, VERSIONS)).toBeUndefined();
});
