// A desktop on the page: noVNC over the portal's WebSocket, with its size following the window and the clipboard both ways.
import RFB from '@novnc/novnc';

import { open } from './api';

/** Why a screen is shown no longer, by the code with which the branch server closes it. */
const ENDS: Record<number, string> = {
  4001: 'Your desktop is shown in another browser now. Connect again to have it back here.',
  4002: 'Your session is over, or the desktop is not yours any more.',
  4003: 'The desktop has shut down.',
};
const CUT = 'The connection was cut. Your desktop goes on; connect again.';

const by = <T extends HTMLElement>(id: string) => document.getElementById(id) as T;

/** Shows a desktop until it ends or the user goes back; answers what to say of that. */
export function show(title: string, ticket: string): Promise<string> {
  const [place, clip, clipboard, paste] = [by('screen'), by<HTMLTextAreaElement>('clip'), by('clipboard'), by('paste')];
  by('title').textContent = title;
  clip.value = '';
  return new Promise((resolve) => {
    const socket = open(ticket);
    const rfb = new RFB(place, socket, { shared: true });
    rfb.resizeSession = true;
    rfb.scaleViewport = true;
    const page = new AbortController();
    const on = (id: string, what: () => void) => by(id).addEventListener('click', what, { signal: page.signal });
    let left = false;
    socket.addEventListener('close', (event) => {
      page.abort();
      clipboard.hidden = true;
      paste.setAttribute('aria-expanded', 'false');
      if (document.fullscreenElement) void document.exitFullscreen();
      place.replaceChildren();
      resolve(left ? '' : (ENDS[event.code] ?? CUT));
    });
    on('back', () => {
      left = true;
      rfb.disconnect();
    });
    on('keys', () => rfb.sendCtrlAltDel());
    on('full', () => void by('view').requestFullscreen());
    on('paste', () => {
      clipboard.hidden = !clipboard.hidden;
      paste.setAttribute('aria-expanded', String(!clipboard.hidden));
      if (clipboard.hidden) rfb.focus();
      else clip.focus();
    });
    clip.addEventListener('input', () => rfb.clipboardPasteFrom(clip.value), { signal: page.signal });
    rfb.addEventListener('clipboard', (event) => {
      const { text } = (event as CustomEvent<{ text: string }>).detail;
      clip.value = text;
      // Browsers allow it while the page has the focus, or not at all; the field has it in any case.
      navigator.clipboard?.writeText(text).catch(() => undefined);
    });
    // What was copied elsewhere meanwhile, where the browser lets a page read it.
    window.addEventListener(
      'focus',
      () => {
        navigator.clipboard?.readText?.().then((text) => {
          if (text !== '' && text !== clip.value) {
            clip.value = text;
            rfb.clipboardPasteFrom(text);
          }
        }, () => undefined);
      },
      { signal: page.signal },
    );
    rfb.addEventListener('connect', () => rfb.focus());
  });
}
