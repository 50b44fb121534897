// The built console as the datacenter serves it, over the made-up API, and a browser to look at it with.
//
// Headers are those of datacenter/src/http/console.rs; the policy itself is the one file that both read.

import { existsSync, readFileSync } from 'node:fs';
import type { Server } from 'node:http';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { extname } from 'node:path';
import { fileURLToPath } from 'node:url';

import type { Browser, BrowserContext, Page } from 'playwright-core';
import { chromium } from 'playwright-core';

import { answer } from '../fixtures/server';

const here = (path: string): string => fileURLToPath(new URL(path, import.meta.url));
const APP = here('../dist/app/');
const POLICY = readFileSync(here('../content-security-policy.txt'), 'utf8').trim();
const TYPES: Record<string, string> = { '.html': 'text/html; charset=utf-8', '.js': 'text/javascript', '.css': 'text/css', '.svg': 'image/svg+xml', '.woff2': 'font/woff2', '.txt': 'text/plain; charset=utf-8' };
const CHROMIUM = process.env['CHROMIUM'] ?? '/usr/bin/chromium';

export const SCREENSHOTS = here('./screenshots/');

/** Serves the build and the API on a port of its own. */
export async function serve(): Promise<{ server: Server; url: string }> {
  if (!existsSync(`${APP}index.html`)) throw new Error('dist/app has no index.html: npm run build first');
  const server = createServer((request, response) => {
    const { pathname } = new URL(request.url ?? '/', 'http://console');
    if (pathname.startsWith('/v1/')) return void answer(request, response);
    const named = `${APP}${pathname.slice('/console/'.length)}`;
    const asset = extname(named) !== '' && existsSync(named) ? named : `${APP}index.html`;
    if (!pathname.startsWith('/console/') || (pathname.startsWith('/console/assets/') && asset !== named)) return void response.writeHead(404).end();
    response
      .writeHead(200, {
        'content-type': TYPES[extname(asset)] ?? 'application/octet-stream',
        'content-security-policy': POLICY,
        'x-content-type-options': 'nosniff',
        'referrer-policy': 'no-referrer',
      })
      .end(readFileSync(asset));
  });
  await new Promise<void>((listening) => server.listen(0, '127.0.0.1', listening));
  return { server, url: `http://127.0.0.1:${(server.address() as AddressInfo).port}/console/` };
}

export async function browse(): Promise<Browser> {
  if (!existsSync(CHROMIUM)) throw new Error(`${CHROMIUM} is missing: apt-get install chromium, or set CHROMIUM`);
  return chromium.launch({
    executablePath: CHROMIUM,
    args: ['--headless', '--no-sandbox', '--disable-gpu', '--disable-quic', '--disable-dev-shm-usage', '--disable-background-networking'],
  });
}

/** A page, and all that went wrong in it: nothing may be said on the console, nothing may be loaded from elsewhere. */
export async function open(
  browser: Browser,
  url: string,
  more: { dark?: boolean; width?: number; height?: number } = {},
): Promise<{ page: Page; context: BrowserContext; wrong: string[] }> {
  const context = await browser.newContext({
    colorScheme: more.dark ? 'dark' : 'light',
    reducedMotion: 'reduce',
    viewport: { width: more.width ?? 1440, height: more.height ?? 900 },
  });
  const page = await context.newPage();
  const wrong: string[] = [];
  page.on('pageerror', (error) => wrong.push(String(error)));
  page.on('console', (message) => {
    // A refused call is the test's own doing.
    if (['error', 'warning'].includes(message.type()) && !/status of (401|404|409|422|503)/.test(message.text())) wrong.push(message.text());
  });
  page.on('request', (request) => {
    if (!request.url().startsWith(new URL(url).origin) && !request.url().startsWith('data:')) wrong.push(`loads ${request.url()}`);
  });
  await page.goto(url);
  return { page, context, wrong };
}

export async function signIn(page: Page, token: string): Promise<void> {
  await page.getByRole('button', { name: 'Use an API token' }).click();
  await page.getByLabel('API token').fill(token);
  await page.getByRole('button', { name: 'Sign in' }).click();
  await page.getByRole('button', { name: 'Sign out' }).waitFor();
}
