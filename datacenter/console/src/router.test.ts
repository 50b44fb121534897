// Addresses: each names one page or none, and names with odd letters come back as they went.

import { expect, test } from 'vitest';

import { match, place, to } from './router';

test('places lie below /console', () => {
  expect(place('/console/')).toBe('/');
  expect(place('/console')).toBe('/');
  expect(place('/console/images/')).toBe('/images');
  expect(place('/consoles/x')).toBe('/');
});

test('a name goes into an address and comes back', () => {
  for (const name of ['new-york', 'a b', 'ä/ö', '100%', '..', '#?']) expect(match('/branches/:branch', to('branches', name))).toEqual({ branch: name });
});

test('what is no page is none', () => {
  expect(match('/images/:image', '/images')).toBeUndefined();
  expect(match('/images/:image', '/branches/x')).toBeUndefined();
  expect(match('/images/:image', '/images/a/b')).toBeUndefined();
  expect(match('/images/:image', '/images/%E0%A4%A')).toBeUndefined();
});
