// Sizes, durations, rates and shares as people read them. The same words as the command line's (datacenter/api/src/units.rs).

const SIZES = ['KiB', 'MiB', 'GiB', 'TiB', 'PiB'];

/** A size: three figures and a binary unit. */
export function size(bytes: number): string {
  if (bytes < 1024) return `${bytes} B`;
  let value = bytes / 1024;
  let unit = 0;
  while (value >= 1000 && unit + 1 < SIZES.length) {
    value /= 1024;
    unit += 1;
  }
  const decimals = value < 9.995 ? 2 : value < 99.95 ? 1 : 0;
  return `${value.toFixed(decimals)} ${SIZES[unit]}`;
}

/** A duration: its two largest units. */
export function duration(seconds: number): string {
  const whole = Math.max(0, Math.floor(seconds));
  const [d, h, m, s] = [Math.floor(whole / 86_400), Math.floor(whole / 3600) % 24, Math.floor(whole / 60) % 60, whole % 60];
  if (d > 0) return h > 0 ? `${d} d ${h} h` : `${d} d`;
  if (h > 0) return m > 0 ? `${h} h ${m} min` : `${h} h`;
  if (m > 0) return s > 0 && m < 10 ? `${m} min ${s} s` : `${m} min`;
  return `${s} s`;
}

/** A time that was: `3 min ago`. Clocks differ a little, so what is just ahead is now. */
export function ago(unixS: number, nowS: number): string {
  const past = nowS - unixS;
  if (past < 5) return past > -60 ? 'just now' : `in ${duration(-past)}`;
  return `${past < 600 ? duration(past) : duration(past - (past % 60))} ago`;
}

/** A time to come: `in 3 d`, or that it is past. */
export function until(unixS: number, nowS: number): string {
  return unixS > nowS ? `in ${duration(unixS - nowS)}` : `${duration(nowS - unixS)} ago`;
}

/** A rate of bits, in decimal units as lines are sold. */
export function rate(bitsPerS: number): string {
  const [value, unit] =
    bitsPerS >= 1e9 ? [bitsPerS / 1e9, 'Gbit/s'] : bitsPerS >= 1e6 ? [bitsPerS / 1e6, 'Mbit/s'] : [bitsPerS / 1e3, 'kbit/s'];
  return `${Math.round(value * 100) / 100} ${unit}`;
}

/** A rate as it is written, to the bit; nothing for none. */
export function exactRate(bitsPerS: number | null | undefined): string {
  if (!bitsPerS) return '';
  return bitsPerS >= 1e6 ? `${bitsPerS / 1e6}Mbit` : `${bitsPerS / 1e3}kbit`;
}

/** Reads a rate: `512kbit`, `5 Mbit/s`, `1.5Gbit`; `none` or nothing is 0. Undefined if it is none. */
export function parseRate(text: string): number | undefined {
  const plain = text.trim().toLowerCase();
  if (plain === '' || plain === 'none') return 0;
  const parts = /^(\d+(?:\.\d+)?)\s*([kmg])b(?:it)?(?:\/s)?$/.exec(plain);
  const factor = { k: 1e3, m: 1e6, g: 1e9 }[parts?.[2] ?? ''];
  if (!parts?.[1] || !factor) return undefined;
  const value = Math.round(Number(parts[1]) * factor);
  return value >= 1 && value <= 1e12 ? value : undefined;
}

/** A share of a whole; `–` of nothing. Never rounds to 0 % or 100 % what is not. */
export function percent(part: number, whole: number): string {
  if (whole <= 0) return '–';
  const share = (part / whole) * 100;
  if (part > 0 && share < 0.1) return '< 0.1 %';
  if (part < whole && share > 99.9) return '> 99.9 %';
  if (part >= whole) return '100 %';
  return `${(Math.floor(share * 10) / 10).toFixed(1)} %`;
}

/** A number with thin spaces between thousands. */
export function count(value: number): string {
  return Math.round(value).toString().replace(/\B(?=(\d{3})+(?!\d))/g, '\u202f');
}

/** `1 branch`, `3 branches`. */
export function many(value: number, one: string, more = `${one}s`): string {
  return `${count(value)} ${value === 1 ? one : more}`;
}

/** A message of the API as a sentence's beginning: they begin small. */
export function sentence(text: string): string {
  return text.charAt(0).toUpperCase() + text.slice(1);
}

/** The first digits of an id; the whole of it stands in a title. */
export function short(id: string): string {
  return id.slice(0, 12);
}

/** Milliseconds as people read them. */
export function milliseconds(ms: number): string {
  if (ms >= 10_000) return duration(ms / 1000);
  if (ms >= 1000) return `${(ms / 1000).toFixed(1)} s`;
  return `${ms < 10 ? ms.toFixed(1) : Math.round(ms)} ms`;
}
