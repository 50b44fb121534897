// The console in a browser: what each page shows, that axe finds nothing on it, that the policy holds, and that the keyboard is enough.

import { mkdirSync, readFileSync } from 'node:fs';
import type { Server } from 'node:http';
import { createRequire } from 'node:module';

import type { AxeResults } from 'axe-core';
import type { Browser, Page } from 'playwright-core';
import { afterAll, beforeAll, expect, test } from 'vitest';

import { ACCOUNT, TOKENS } from '../fixtures/server';
import { VOLUMES } from '../fixtures/volumes';
import { browse, open, SCREENSHOTS, serve, signIn } from './site';

const AXE = readFileSync(createRequire(import.meta.url).resolve('axe-core/axe.min.js'), 'utf8');

let browser: Browser;
let server: Server;
let url: string;

beforeAll(async () => {
  mkdirSync(SCREENSHOTS, { recursive: true });
  ({ server, url } = await serve());
  browser = await browse();
});

afterAll(async () => {
  await browser?.close();
  server?.close();
});

/** What axe holds against the page, a line each. */
async function axe(page: Page): Promise<string[]> {
  // By the debugger, which the page's policy does not bind.
  await page.evaluate(AXE);
  const results = await page.evaluate(
    () => (window as unknown as { axe: { run: (of: Document, options: object) => Promise<AxeResults> } }).axe.run(document, { resultTypes: ['violations'] }),
  );
  return results.violations.flatMap(({ id, nodes }) => nodes.map((node) => `${id}: ${node.target.join(' ')} ${node.failureSummary ?? ''}`));
}

const held = VOLUMES.find((one) => one.lease && one.kind === 'system' && one.forks === 0)!;
const forked = VOLUMES.find((one) => one.forks > 0)!;

/** Pages, by name: where they are, and words that are on them once they are whole. */
const PAGES: [name: string, path: string, words: string[]][] = [
  ['fleet', '', ['11 of 12', 'lagos', 'root signing key', 'Wants attention']],
  ['branch', 'branches/cape-town', ['Not ready', '214 chunks', 'Versions held', 'Caps and hours']],
  ['branch-down', 'branches/lagos', ['Down', 'desktops there go on']],
  ['images', 'images', ['debian@7', 'not published yet', 'Saved']],
  ['image', 'images/debian', ['Firefox 128.9', 'can be had back', 'the newest 5']],
  ['version', 'images/debian/7', ['71.0 MiB', 'Boot profile', 'Made of', 'Runs in']],
  ['desktops', 'desktops', ['ada', 'Running', 'cape-town']],
  ['volume', `volumes/${held.id}`, ['Snapshots', 'At log-off', 'what the volume began with']],
  ['volume-forked', `volumes/${forked.id}`, ['Forks', 'Somebody has to decide', 'may still come back']],
  ['operations', 'operations', ['Publish #31', 'chunking and storing', 'backing file', 'Found damage']],
  ['operation', 'operations/26', ['What it found damaged', 'cad-workstation@1']],
  ['store', 'store', ['Sound', 'Back up now', '/mnt/backup/splice', 'pack 173 of 241']],
  ['audit', 'audit', ['Rolled back', 'help desk']],
];

test.each([
  ['light', false],
  ['dark', true],
])('every page is whole, accessible and within the policy: %s', async (theme, dark) => {
  const { page, context, wrong } = await open(browser, url, { dark, height: 1200 });
  await signIn(page, TOKENS.full);
  for (const [name, path, words] of PAGES) {
    await page.goto(`${url}${path}`);
    for (const word of words) await page.getByText(word).first().waitFor({ timeout: 10_000 }).catch(() => expect.fail(`${name} does not say ${word}`));
    await page.screenshot({ path: `${SCREENSHOTS}${name}-${theme}.png`, fullPage: false });
    expect.soft(await axe(page), name).toEqual([]);
    expect(await page.title(), name).toMatch(/ – Splice$/);
    expect(await page.getByRole('heading', { level: 1 }).count(), name).toBe(1);
  }
  expect(wrong).toEqual([]);
  await context.close();
});

test('a stranger is asked for a token, and told when it is not known', async () => {
  const { page, context, wrong } = await open(browser, `${url}branches/haifa`);
  expect(await axe(page)).toEqual([]);
  await page.screenshot({ path: `${SCREENSHOTS}sign-in-light.png` });
  await page.getByRole('button', { name: 'Use an API token' }).click();
  await page.getByLabel('API token').fill('splice-api-1.guessed');
  await page.keyboard.press('Enter');
  await page.getByText('The token is not known here').waitFor();
  expect(await axe(page)).toEqual([]);
  await page.getByRole('button', { name: 'Use an account' }).click();
  await signIn(page, TOKENS.full);
  // One is where one wanted to go, and still there after a reload.
  await page.getByRole('heading', { name: 'haifa', level: 1 }).waitFor();
  await page.reload();
  await page.getByRole('heading', { name: 'haifa', level: 1 }).waitFor();
  await page.getByRole('button', { name: 'Sign out' }).click();
  await page.getByLabel('Name').waitFor();
  expect(await page.evaluate(() => sessionStorage.length)).toBe(0);
  expect(wrong).toEqual([]);
  await context.close();
});

test('somebody with an account signs in, in every tab, until they sign out', async () => {
  const { page, context, wrong } = await open(browser, `${url}branches/haifa`);
  await page.getByLabel('Name').fill(ACCOUNT.name);
  await page.getByLabel('Password').fill('guessed');
  await page.keyboard.press('Enter');
  await page.getByText('The name or the password is wrong').waitFor();
  await page.getByLabel('Password').fill(ACCOUNT.password);
  await page.keyboard.press('Enter');
  await page.getByRole('heading', { name: 'haifa', level: 1 }).waitFor();
  const tab = await context.newPage();
  await tab.goto(`${url}images`);
  await tab.getByText('debian@7').first().waitFor();
  await tab.close();
  await Promise.all([page.waitForResponse('**/v1/log-out'), page.getByRole('button', { name: 'Sign out' }).click()]);
  await page.getByLabel('Name').waitFor();
  await page.reload();
  await page.getByLabel('Name').waitFor();
  expect(wrong).toEqual([]);
  await context.close();
});

test('an empty datacenter says what to do', async () => {
  const { page, context, wrong } = await open(browser, url);
  await signIn(page, TOKENS.empty);
  for (const [path, words] of [
    ['', 'No branches yet'],
    ['images', 'No images yet'],
    ['desktops', 'No desktops yet'],
    ['operations', 'No operations yet'],
    ['store', 'Nothing was collected yet'],
    ['audit', 'Nothing yet'],
  ] as const) {
    await page.goto(`${url}${path}`);
    await page.getByText(words).first().waitFor();
    expect(await axe(page), path).toEqual([]);
    if (path === '') await page.screenshot({ path: `${SCREENSHOTS}fleet-empty-light.png` });
  }
  expect(wrong).toEqual([]);
  await context.close();
});

test('what cannot be had says why, and what is not there says so', async () => {
  const { page, context, wrong } = await open(browser, url);
  await signIn(page, TOKENS.ill);
  await page.goto(`${url}operations`);
  await page.getByText('The catalog is being opened').waitFor();
  await page.getByRole('button', { name: 'Try again' }).waitFor();
  await page.screenshot({ path: `${SCREENSHOTS}failed-light.png` });
  expect(await axe(page)).toEqual([]);
  await page.getByRole('button', { name: 'Sign out' }).click();
  await signIn(page, TOKENS.full);
  await page.goto(`${url}images/no-such`);
  await page.getByText('There is no image no-such').waitFor();
  await page.goto(`${url}nowhere/at/all`);
  await page.getByText('There is no such page').waitFor();
  expect(wrong).toEqual([]);
  await context.close();
});

test('what was seen stays while the datacenter is away, and says since when', async () => {
  const { page, context } = await open(browser, url);
  await signIn(page, TOKENS.full);
  await page.goto(`${url}operations`);
  await page.getByText('Publish #31').waitFor();
  await page.route('**/v1/**', (route) => route.abort());
  await page.getByText(/What you see is from/).waitFor({ timeout: 20_000 });
  await page.getByText('Publish #31').waitFor();
  expect(await axe(page)).toEqual([]);
  await page.unroute('**/v1/**');
  await page.getByRole('button', { name: 'Try again' }).click();
  await page.getByText(/What you see is from/).waitFor({ state: 'detached' });
  await context.close();
});

test('an operation moves on while one looks', async () => {
  const { page, context } = await open(browser, `${url}operations/31`);
  await signIn(page, TOKENS.full);
  const bar = page.getByRole('progressbar');
  await bar.waitFor();
  const before = Number(await bar.getAttribute('aria-valuenow'));
  await expect.poll(async () => Number(await bar.getAttribute('aria-valuenow')), { timeout: 20_000 }).toBeGreaterThan(before);
  await context.close();
});

test('a roll-back by keyboard alone: says what is lost, wants a reason, tells the datacenter’s no', async () => {
  const { page, context, wrong } = await open(browser, `${url}volumes/${held.id}`);
  await signIn(page, TOKENS.full);
  await page.getByRole('button', { name: 'Actions on snapshot 4' }).focus();
  await page.keyboard.press('Enter');
  await page.getByRole('menuitem', { name: 'Roll back to it' }).waitFor();
  await expect.poll(() => page.evaluate(() => document.activeElement?.textContent)).toBe('Roll back to it');
  await page.keyboard.press('Enter');
  const dialog = page.getByRole('dialog');
  await dialog.getByText(/of work on the desktop's system is taken out of use/).waitFor();
  await dialog.getByText(`${held.home} holds the volume`).waitFor();
  expect(await axe(page)).toEqual([]);
  await page.screenshot({ path: `${SCREENSHOTS}roll-back-light.png` });
  const go = dialog.getByRole('button', { name: 'Roll back' });
  expect(await go.isDisabled()).toBe(true);
  // The name first; then the reason is missed, then the datacenter refuses, then it is forced.
  await dialog.getByLabel(/^Type /).fill(held.desktop);
  await go.press('Enter');
  await dialog.getByText('Who does it and why is needed').waitFor();
  await dialog.getByLabel('Who does it and why').fill('dana (help desk): a bad update');
  await page.keyboard.press('Enter');
  await dialog.getByText('may run the desktop until its lease ends').waitFor();
  await page.screenshot({ path: `${SCREENSHOTS}roll-back-refused-light.png` });
  await dialog.getByLabel('Also while the branch may run the desktop').press('Space');
  await go.press('Enter');
  await dialog.waitFor({ state: 'detached' });
  await page.getByText('nobody', { exact: true }).waitFor();
  expect(wrong).toEqual([]);
  await context.close();
});

test('leases and snapshots of a pool are as they were saved', async () => {
  const { page, context, wrong } = await open(browser, `${url}branches/berlin`);
  await signIn(page, TOKENS.full);
  const change = async (): Promise<void> => {
    await page.getByRole('button', { name: 'Actions on pool office' }).click();
    await page.getByRole('menuitem', { name: 'Leases and snapshots' }).click();
  };
  await change();
  const dialog = page.getByRole('dialog');
  await dialog.getByLabel('of so many days').fill('a week');
  await dialog.getByRole('button', { name: 'Save' }).click();
  await dialog.getByText('A whole number').waitFor();
  expect(await axe(page)).toEqual([]);
  await dialog.getByLabel('of so many days').fill('30');
  await dialog.getByRole('button', { name: 'Save' }).click();
  await dialog.waitFor({ state: 'detached' });
  await change();
  expect(await dialog.getByLabel('of so many days').inputValue()).toBe('30');
  expect(wrong).toEqual([]);
  await context.close();
});

test('Escape closes a dialog and gives the focus back', async () => {
  const { page, context } = await open(browser, url);
  await signIn(page, TOKENS.full);
  await page.getByRole('button', { name: 'Invite a branch' }).press('Enter');
  await page.getByRole('dialog').waitFor();
  await page.keyboard.press('Escape');
  await page.getByRole('dialog').waitFor({ state: 'detached' });
  await expect.poll(() => page.evaluate(() => document.activeElement?.textContent)).toBe('Invite a branch');
  await context.close();
});

test('a token is shown once, and only by asking', async () => {
  const { page, context, wrong } = await open(browser, url);
  await signIn(page, TOKENS.full);
  await page.getByRole('button', { name: 'Invite a branch' }).click();
  const dialog = page.getByRole('dialog');
  await dialog.getByLabel('Name').fill('no good name');
  await dialog.getByRole('button', { name: 'Make the token' }).click();
  await dialog.getByText(/1 to 64 letters/).waitFor();
  await dialog.getByLabel('Name').fill('vilnius');
  await dialog.getByRole('button', { name: 'Make the token' }).click();
  await expect.poll(() => dialog.getByRole('textbox').inputValue()).toMatch(/^splice-branch join splice-join-1\./);
  expect(await axe(page)).toEqual([]);
  await page.screenshot({ path: `${SCREENSHOTS}invite-light.png` });
  await dialog.getByText('Close', { exact: true }).click();
  expect(await page.content()).not.toContain('splice-join-1.');
  expect(wrong).toEqual([]);
  await context.close();
});

test('the address, the title and the focus follow where one goes', async () => {
  const { page, context, wrong } = await open(browser, url);
  await signIn(page, TOKENS.full);
  await page.getByRole('link', { name: 'haifa' }).click();
  await page.getByRole('heading', { name: 'haifa', level: 1 }).waitFor();
  expect(page.url()).toBe(`${url}branches/haifa`);
  expect(await page.title()).toBe('haifa – Splice');
  await expect.poll(() => page.evaluate(() => document.activeElement?.textContent)).toBe('haifa');
  await page.goBack();
  await page.getByRole('heading', { name: 'Fleet', level: 1 }).waitFor();
  expect(wrong).toEqual([]);
  await context.close();
});

test('a narrow screen hides nothing and scrolls only tables', async () => {
  const { page, context } = await open(browser, url, { width: 390, height: 844 });
  await signIn(page, TOKENS.full);
  await page.getByText('11 of 12').waitFor();
  await page.screenshot({ path: `${SCREENSHOTS}fleet-narrow-light.png` });
  const wider = await page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);
  expect(wider).toBeLessThanOrEqual(0);
  expect(await axe(page)).toEqual([]);
  await context.close();
});
