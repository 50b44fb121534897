// Which page the address names. Paths below /console, kept in the browser's history; the datacenter answers all of them with one page.

import type { AnchorHTMLAttributes, ReactNode, SyntheticEvent } from 'react';
import { useSyncExternalStore } from 'react';

/** Where the datacenter serves the console. */
export const BASE = '/console';

const MOVED = 'splice-moved';

/** The path below the base, without a slash at its end; `/` for the first page. */
export function place(pathname: string): string {
  const below = pathname.startsWith(`${BASE}/`) ? pathname.slice(BASE.length) : '/';
  return below.length > 1 ? below.replace(/\/+$/, '') : '/';
}

/** The path of a page: each part is encoded. */
export function to(...parts: (string | number)[]): string {
  return `/${parts.map((part) => encodeURIComponent(part)).join('/')}`;
}

/** What `pattern`'s parts that begin with a colon stand for in `path`; none if it is another page's. */
export function match(pattern: string, path: string): Record<string, string> | undefined {
  const [wanted, found] = [pattern.split('/'), path.split('/')];
  if (wanted.length !== found.length) return undefined;
  const values: Record<string, string> = {};
  for (const [index, part] of wanted.entries()) {
    const is = found[index] ?? '';
    if (!part.startsWith(':')) {
      if (part !== is) return undefined;
      continue;
    }
    try {
      values[part.slice(1)] = decodeURIComponent(is);
    } catch {
      return undefined;
    }
  }
  return values;
}

export function navigate(path: string): void {
  history.pushState(null, '', `${BASE}${path}`);
  dispatchEvent(new Event(MOVED));
}

/** The present place, and a new look whenever it changes. */
export function usePlace(): string {
  return useSyncExternalStore(
    (listener) => {
      addEventListener('popstate', listener);
      addEventListener(MOVED, listener);
      return () => {
        removeEventListener('popstate', listener);
        removeEventListener(MOVED, listener);
      };
    },
    () => place(location.pathname),
  );
}

/** Has a click go to a page without loading anything, unless it asks for a new tab or window. */
export function follow(path: string) {
  return (event: SyntheticEvent): void => {
    const click = event.nativeEvent;
    if (click instanceof MouseEvent && (click.button !== 0 || click.metaKey || click.ctrlKey || click.shiftKey || click.altKey)) return;
    event.preventDefault();
    navigate(path);
  };
}

/** A link to a page of the console. */
export function Link({ page, children, ...rest }: { page: string; children: ReactNode } & AnchorHTMLAttributes<HTMLAnchorElement>) {
  return (
    <a {...rest} href={`${BASE}${page}`} onClick={follow(page)}>
      {children}
    </a>
  );
}
