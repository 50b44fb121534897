// The portal's page: log in, my desktops, one click to a running one.
import * as api from './api';
import { show } from './screen';

const by = <T extends HTMLElement>(id: string) => document.getElementById(id) as T;

const PAGES = ['log-in', 'desktops', 'view'] as const;
const LOOK_EVERY_MS = 5_000;
const ASK_EVERY_MS = 1_500;
const STATES: Record<api.State, string> = {
  starting: 'is starting',
  running: 'is running',
  served: 'is run by somebody else',
  paused: 'waits for the line or for room on the disk, and goes on by itself',
  stopped: 'is switched off',
  failed: 'has failed',
};

let page: (typeof PAGES)[number] = 'log-in';
/** Pools whose desktop is being connected to, so that a second click does nothing. */
const busy = new Set<string>();

function turn(to: typeof page) {
  page = to;
  for (const id of PAGES) by(id).hidden = id !== to;
}

function say(text: string) {
  by('says').textContent = text;
}

const wait = (ms: number) => new Promise((resolve) => setTimeout(resolve, ms));

/** Does something; what goes wrong is said, and who is logged in no longer logs in again. */
async function attempt(what: () => Promise<void>) {
  try {
    await what();
  } catch (error) {
    if (error instanceof api.Refused && error.status === 401 && page !== 'log-in') turn('log-in');
    say(error instanceof Error ? error.message : String(error));
  }
}

async function enter(session: api.Session) {
  by('who').textContent = `${session.name} at ${session.branch}`;
  document.title = `My desktops at ${session.branch}`;
  turn('desktops');
  await look();
}

function button(text: string, label: string, what: () => Promise<void>): HTMLButtonElement {
  const made = document.createElement('button');
  made.type = 'button';
  made.textContent = text;
  made.setAttribute('aria-label', label);
  made.addEventListener('click', () => void attempt(what));
  return made;
}

function card(desktop: api.Desktop): HTMLLIElement {
  const { pool, state } = desktop;
  const item = document.createElement('li');
  const [name, about] = [document.createElement('h2'), document.createElement('p')];
  name.textContent = pool;
  const said = state === null ? 'was not used yet; it is made at your first connection' : STATES[state];
  const other = desktop.viewed ? ', and is shown in a browser' : '';
  about.textContent = `${said}${other}${desktop.error === null ? '' : `: ${desktop.error}`}`;
  const main = button('Connect', `Connect to ${pool}`, () => connect(pool));
  main.className = 'main';
  main.disabled = busy.has(pool);
  item.append(name, about, main);
  if (state === 'running' || state === 'paused') {
    const anew = desktop.pooled ? ' This desktop begins anew after that: what is not in your own folder is lost.' : '';
    const sure = (question: string) => Promise.resolve(confirm(question + anew));
    item.append(
      button('Shut down', `Shut down ${pool}`, async () => {
        if (!(await sure(`Shut down ${pool}?`))) return;
        say(`${pool} shuts down…`);
        await api.power(pool, 'shut_down');
        await look();
        say('');
      }),
      button('Power off', `Power off ${pool}`, async () => {
        if (!(await sure(`Power off ${pool}, as if its cord was pulled? What was not saved is lost.`))) return;
        await api.power(pool, 'power_off');
        await look();
      }),
    );
  }
  return item;
}

async function look() {
  const mine = await api.desktops();
  if (page !== 'desktops') return;
  const focused = document.activeElement?.getAttribute('aria-label');
  by('list').replaceChildren(...mine.map(card));
  by('none').hidden = mine.length > 0;
  // The buttons are new ones: who had the keyboard on one has it on the same again.
  for (const made of by('list').querySelectorAll('button')) {
    if (focused && made.getAttribute('aria-label') === focused) made.focus();
  }
}

/** One click: asks until the desktop runs, then shows it. */
async function connect(pool: string) {
  if (busy.has(pool)) return;
  busy.add(pool);
  try {
    for (;;) {
      const answer = await api.connect(pool);
      if (page !== 'desktops') return;
      if (answer.state === 'ready') {
        say('');
        turn('view');
        const said = await show(pool, answer.ticket);
        turn('desktops');
        say(said);
        break;
      }
      say(answer.state === 'starting' ? `${pool} is starting…` : `You are number ${answer.position} in the line for ${pool}: ${answer.reason}.`);
      await wait(ASK_EVERY_MS);
    }
  } finally {
    busy.delete(pool);
    if (page === 'desktops') await look();
  }
}

by('log-in').querySelector('form')?.addEventListener('submit', (event) => {
  event.preventDefault();
  const form = event.target as HTMLFormElement;
  const text = (name: string) => String(new FormData(form).get(name) ?? '');
  void attempt(async () => {
    say('');
    try {
      const session = await api.logIn(text('name'), text('password'), text('code').trim());
      form.reset();
      by('code').hidden = true;
      await enter(session);
    } catch (error) {
      if (error instanceof api.Refused && error.message.includes('second factor')) {
        by('code').hidden = false;
        by('code').querySelector('input')?.focus();
      }
      throw error;
    }
  });
});

by('log-out').addEventListener('click', () => {
  void attempt(async () => {
    await api.logOut();
    turn('log-in');
    say('');
  });
});

setInterval(() => {
  if (page === 'desktops' && busy.size === 0 && !document.hidden) void attempt(look);
}, LOOK_EVERY_MS);

// A page that is loaded again goes on with the session's cookie.
api.session().then(enter, () => turn('log-in'));
