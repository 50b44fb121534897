// How the portal's page is built: one page, hashed files beside it, and the licences of what is in them.
import { readFileSync } from 'node:fs';

import { defineConfig } from 'vite';

/** Licences ask to be shipped with what they are of. noVNC's source is in the registry, unchanged: the MPL asks to say where. */
function licences() {
  return {
    name: 'licences',
    apply: 'build',
    generateBundle() {
      const at = (file) => readFileSync(new URL(`./node_modules/@novnc/novnc/${file}`, import.meta.url), 'utf8').trim();
      const { version } = JSON.parse(at('package.json'));
      const head = `The portal of Splice contains noVNC ${version}, unchanged, under the licences below.\nIts source: https://registry.npmjs.org/@novnc/novnc/-/novnc-${version}.tgz\n`;
      const texts = ['LICENSE.txt', 'docs/LICENSE.MPL-2.0', 'vendor/pako/LICENSE'].map(at);
      this.emitFile({ type: 'asset', fileName: 'licences.txt', source: [head, ...texts].join(`\n${'='.repeat(80)}\n`) });
    },
  };
}

export default defineConfig({
  base: '/',
  plugins: [licences()],
  build: {
    outDir: 'dist/app',
    emptyOutDir: true,
    target: 'es2022',
    // Never inlined: a strict policy lets no script or style stand in the page.
    assetsInlineLimit: 0,
    modulePreload: { polyfill: false },
    reportCompressedSize: false,
  },
  // `npm run dev` beside a branch server: SPLICE_PORTAL names it. The realm's own authority signed its certificate.
  server: {
    proxy: { '/v1': { target: process.env['SPLICE_PORTAL'] ?? 'https://localhost:7490', secure: false, ws: true } },
  },
});
