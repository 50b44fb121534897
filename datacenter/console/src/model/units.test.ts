// What people read of sizes, times and shares; the sizes' cases are those of datacenter/api/src/units.rs.

import { expect, test } from 'vitest';

import { ago, count, duration, exactRate, many, milliseconds, parseRate, percent, rate, size, until } from './units';

test.each([
  [0, '0 B'],
  [1023, '1023 B'],
  [16 << 10, '16.0 KiB'],
  [3_700_000_000, '3.45 GiB'],
  [1023 * 2 ** 20, '1.00 GiB'],
  [999.4 * 2 ** 10, '999 KiB'],
  [9.9951 * 2 ** 20, '10.0 MiB'],
  [5 * 2 ** 60, '5120 PiB'],
])('%d bytes are %s', (bytes, words) => expect(size(bytes)).toBe(words));

test.each([
  [-3, '0 s'],
  [59, '59 s'],
  [60, '1 min'],
  [61, '1 min 1 s'],
  [3 * 3600 + 120, '3 h 2 min'],
  [200_000, '2 d 7 h'],
  [86_400, '1 d'],
])('%d seconds are %s', (seconds, words) => expect(duration(seconds)).toBe(words));

test('times say which way they lie', () => {
  expect(ago(100, 103)).toBe('just now');
  expect(ago(100, 90)).toBe('just now');
  expect(ago(1000, 100)).toBe('in 15 min');
  expect(ago(100, 100 + 7 * 60 + 3)).toBe('7 min 3 s ago');
  expect(ago(100, 100 + 3600)).toBe('1 h ago');
  expect(until(100, 40)).toBe('in 1 min');
  expect(until(100, 400)).toBe('5 min ago');
});

test('a rate that is written reads back, and nonsense does not', () => {
  for (const [text, bits] of [
    ['512kbit', 512_000],
    ['5 Mbit/s', 5e6],
    ['1.5Gbit', 1.5e9],
    ['', 0],
    ['none', 0],
  ] as const) {
    expect(parseRate(text), text).toBe(bits);
  }
  for (const text of ['5', '5MiB', '-5Mbit', '1e3kbit', '9999Gbit', '.5Mbit']) expect(parseRate(text), text).toBeUndefined();
  for (const bits of [64_000, 64_001, 512_000, 123_456_789, 20e6, 1.5e9, 1e12 - 1]) expect(parseRate(exactRate(bits))).toBe(bits);
  expect(exactRate(null)).toBe('');
  expect([64_000, 20e6, 1.5e9].map(rate)).toEqual(['64 kbit/s', '20 Mbit/s', '1.5 Gbit/s']);
});

test('a share is never rounded to all or nothing', () => {
  expect(percent(0, 0)).toBe('–');
  expect(percent(0, 10)).toBe('0.0 %');
  expect(percent(1, 100_000)).toBe('< 0.1 %');
  expect(percent(99_999, 100_000)).toBe('> 99.9 %');
  expect(percent(99_949, 100_000)).toBe('> 99.9 %');
  expect(percent(94_99, 10_000)).toBe('94.9 %');
  expect(percent(7, 7)).toBe('100 %');
});

test('numbers and what is counted', () => {
  expect(count(1_842_117)).toBe('1\u202f842\u202f117');
  expect(many(1, 'batch', 'batches')).toBe('1 batch');
  expect(many(2, 'batch', 'batches')).toBe('2 batches');
  expect(milliseconds(3.21)).toBe('3.2 ms');
  expect(milliseconds(1_240)).toBe('1.2 s');
  expect(milliseconds(75_000)).toBe('1 min 15 s');
});
