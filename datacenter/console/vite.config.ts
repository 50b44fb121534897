// How the console is built: one page, hashed files beside it, each also gzipped once here and never by the datacenter.
import { readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { gzipSync } from 'node:zlib';

import type { Plugin } from 'vite';
import { defineConfig } from 'vitest/config';

// @ts-expect-error a script without types
import { notice } from './tools/licences.mjs';

const out = fileURLToPath(new URL('./dist/app/', import.meta.url));

/** Writes FILE.gz beside each file that is a tenth shorter so. Fonts are compressed already. */
function gzipped(): Plugin {
  return {
    name: 'gzipped',
    apply: 'build',
    closeBundle() {
      for (const file of readdirSync(out, { recursive: true, withFileTypes: true })) {
        if (!file.isFile() || file.name.endsWith('.gz')) continue;
        const path = `${file.parentPath}/${file.name}`;
        const plain = readFileSync(path);
        const packed = gzipSync(plain, { level: 9 });
        if (packed.length < plain.length * 0.9) writeFileSync(`${path}.gz`, packed);
      }
    },
  };
}

/** Licences ask to be shipped with what they are of. */
function licences(): Plugin {
  return {
    name: 'licences',
    apply: 'build',
    generateBundle() {
      this.emitFile({ type: 'asset', fileName: 'licences.txt', source: notice() });
    },
  };
}

/** `npm run dev` has the API of the fixtures, unless SPLICE_URL names a datacenter. */
function madeUpApi(): Plugin {
  return {
    name: 'made-up-api',
    apply: 'serve',
    configureServer(server) {
      if (!process.env['SPLICE_URL']) {
        server.middlewares.use((request, response, next) => {
          if (!request.url?.startsWith('/v1/')) return next();
          server.ssrLoadModule('/fixtures/server.ts').then(({ answer }) => answer(request, response), next);
        });
      }
    },
  };
}

const datacenter = process.env['SPLICE_URL'];

export default defineConfig({
  base: '/console/',
  plugins: [madeUpApi(), licences(), gzipped()],
  build: {
    outDir: out,
    emptyOutDir: true,
    target: 'es2022',
    // Never inlined: a strict policy lets no script or style stand in the page.
    assetsInlineLimit: 0,
    modulePreload: { polyfill: false },
    reportCompressedSize: false,
    chunkSizeWarningLimit: 1500,
  },
  // The realm's own authority signed the datacenter's certificate; a developer's proxy does not know it.
  server: datacenter ? { proxy: { '/v1': { target: datacenter, secure: false } } } : {},
  test: {
    projects: [
      { extends: true, test: { name: 'unit', include: ['src/**/*.test.ts', 'fixtures/**/*.test.ts'] } },
      {
        extends: true,
        test: { name: 'browser', include: ['tests/**/*.browser.ts'], testTimeout: 60_000, hookTimeout: 60_000 },
      },
    ],
  },
});
