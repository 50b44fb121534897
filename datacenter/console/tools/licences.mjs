// Under which licences the registry's packages are that the console is made of and made with.
//
// `node tools/licences.mjs` fails on one that is not in the lists. What is shipped keeps to deny.toml's list; what only builds and tests never
// reaches a user, and may ask more (the MPL of axe-core and of Vite's CSS compiler). `notice` is the text that goes out with the console.
import { existsSync, readFileSync, readdirSync } from 'node:fs';
import { pathToFileURL } from 'node:url';

const SHIPPED = ['0BSD', 'Apache-2.0', 'BSD-2-Clause', 'BSD-3-Clause', 'ISC', 'MIT', 'Zlib'];
const TOOLS = [...SHIPPED, 'BlueOak-1.0.0', 'CC0-1.0', 'MPL-2.0', 'Python-2.0'];

const root = new URL('../', import.meta.url);

function packages() {
  const lock = JSON.parse(readFileSync(new URL('package-lock.json', root), 'utf8'));
  return Object.entries(lock.packages)
    .filter(([folder]) => folder !== '')
    .map(([folder, { version, license, dev }]) => ({ folder, name: folder.replace(/^.*node_modules\//, ''), version, licence: license ?? 'unknown', shipped: !dev }));
}

/** Licences that are not allowed where they are, a line each. */
export function refused() {
  return packages()
    .filter(({ licence, shipped }) => !(shipped ? SHIPPED : TOOLS).includes(licence))
    .map(({ name, version, licence, shipped }) => `${name} ${version} is under ${licence}, which is not allowed for what ${shipped ? 'is shipped' : 'builds the console'}`);
}

/** The licence texts of all that is in the built console. */
export function notice() {
  const parts = ['The web console of Splice contains the following, under the licences that stand below each.\n'];
  for (const { folder, name, version, licence, shipped } of packages()) {
    if (!shipped) continue;
    const at = new URL(`${folder}/`, root);
    const file = existsSync(at) ? readdirSync(at).find((entry) => /^licen[cs]e(\.(txt|md))?$/i.test(entry)) : undefined;
    parts.push(`${'='.repeat(80)}\n${name} ${version} (${licence})\n\n${file ? readFileSync(new URL(file, at), 'utf8').trim() : ''}\n`);
  }
  parts.push(`${'='.repeat(80)}\nRed Hat Text, Display and Mono (OFL-1.1)\n\n${readFileSync(new URL('fonts-licence.txt', root), 'utf8').trim()}\n`);
  return parts.join('\n');
}

if (import.meta.url === pathToFileURL(process.argv[1]).href) {
  const findings = refused();
  for (const finding of findings) console.error(finding);
  process.exitCode = findings.length > 0 ? 1 : 0;
}
