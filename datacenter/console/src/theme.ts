// Light or dark: as the system says, until somebody chooses. The choice is kept in this browser.

import { useEffect, useState } from 'react';

export type Theme = 'system' | 'light' | 'dark';

const KEY = 'splice.theme';
const THEMES: readonly Theme[] = ['system', 'light', 'dark'];
const dark = matchMedia('(prefers-color-scheme: dark)');

function kept(): Theme {
  const text = localStorage.getItem(KEY);
  return THEMES.find((theme) => theme === text) ?? 'system';
}

function show(theme: Theme): void {
  const isDark = theme === 'dark' || (theme === 'system' && dark.matches);
  document.documentElement.classList.toggle('pf-v6-theme-dark', isDark);
  document.documentElement.style.colorScheme = isDark ? 'dark' : 'light';
}

/** Shows what was chosen. Called before the first render, so that nothing flashes. */
export function begin(): void {
  show(kept());
}

export function useTheme(): [Theme, (theme: Theme) => void] {
  const [theme, setTheme] = useState(kept);
  useEffect(() => {
    show(theme);
    const changed = (): void => show(theme);
    dark.addEventListener('change', changed);
    return () => dark.removeEventListener('change', changed);
  }, [theme]);
  const choose = (next: Theme): void => {
    localStorage.setItem(KEY, next);
    setTheme(next);
  };
  return [theme, choose];
}
