// Operations as people read them: what they do, how far they are, what came of them.

import type { Operation, Phase, Progress } from '../api/schema';
import type { Verdict } from './fleet';
import { count, duration, many, size } from './units';

const KINDS: Record<Operation['kind'], string> = {
  publish: 'Publish',
  verify: 'Verify',
  update: 'Encode update',
  collect: 'Collect garbage',
  scrub: 'Scrub',
  export: 'Export',
  backup: 'Back up',
};

const PHASES: Record<Phase, string> = {
  open: 'opening the disk',
  import: 'chunking and storing',
  verify: 'reading back',
  sketch: 'looking for what resembles what',
  encode: 'encoding',
  publish: 'signing',
  mark: 'looking for what is reachable',
  sweep: 'going through the index',
  compact: 'rewriting packs',
  scrub: 'reading packs',
  export: 'writing the file',
  copy: 'copying packs',
  done: 'done',
};

/** Phases that count other things than bytes. */
const COUNTED: Partial<Record<Phase, string>> = { mark: 'trees', sweep: 'records' };

export const kind = (operation: Operation): string => KINDS[operation.kind] ?? operation.kind;
export const phase = (progress: Progress): string => PHASES[progress.phase] ?? progress.phase;

/** How much of the present phase is done, 0 to 100; none where nobody knows how much there is. */
export function done({ done_bytes, total_bytes }: Progress): number | undefined {
  if (total_bytes <= 0) return undefined;
  return Math.min(100, Math.floor((done_bytes / total_bytes) * 100));
}

/** The present phase in figures. */
export function figures(progress: Progress): string {
  const { done_bytes, total_bytes, new_chunks, known_chunks } = progress;
  const unit = COUNTED[progress.phase];
  const shown = (value: number): string => (unit ? count(value) : size(value));
  const parts = total_bytes > 0 ? [`${shown(done_bytes)} of ${shown(total_bytes)}${unit ? ` ${unit}` : ''}`] : [];
  if (new_chunks + known_chunks > 0) parts.push(`${count(new_chunks)} new chunks, ${count(known_chunks)} known`);
  return parts.join('; ');
}

export function state(operation: Operation): Verdict {
  switch (operation.state) {
    case 'running':
      return { tone: 'busy', word: 'Running' };
    case 'succeeded':
      return damage(operation) > 0 ? { tone: 'bad', word: 'Found damage' } : { tone: 'good', word: 'Succeeded' };
    case 'failed':
      return { tone: 'bad', word: 'Failed', ...(operation.error ? { why: operation.error.message } : {}) };
  }
}

/** Damage that an operation found: it did its work, and yet is no good news. */
export function damage({ result }: Operation): number {
  if (!result) return 0;
  if ('verify' in result) return result.verify.damaged_count;
  if ('scrub' in result) return result.scrub.damaged ?? 0;
  if ('backup' in result) return result.backup.damaged ?? 0;
  return 0;
}

/** How long it took, or has been at it. */
export function took(operation: Operation, nowS: number): string {
  return duration((operation.finished_unix_s ?? nowS) - operation.started_unix_s);
}

/** What came of it, in a line. */
export function outcome({ result, error }: Operation): string {
  if (error) return error.message;
  if (!result) return '';
  if ('publish' in result) {
    const { image, number, new_chunks, known_chunks, stored_bytes } = result.publish;
    return `${image}@${number}: ${many(new_chunks, 'new chunk')}, ${count(known_chunks)} known, ${size(stored_bytes)} stored`;
  }
  if ('verify' in result) {
    const { chunks, bytes, damaged_count } = result.verify;
    return `${many(chunks, 'chunk')}, ${size(bytes)} read back; ${damaged_count === 0 ? 'all sound' : `${count(damaged_count)} damaged`}`;
  }
  if ('update' in result) {
    const { from, to, packed_bytes, plain_bytes } = result.update;
    return `${from} to ${to}: ${size(packed_bytes)} cross a link for ${size(plain_bytes)}`;
  }
  if ('collect' in result) {
    const { dry_run, condemned = 0, erased = 0, freed_bytes = 0 } = result.collect;
    return `${dry_run ? 'would have condemned' : 'condemned'} ${count(condemned)}, erased ${count(erased)}, ${size(freed_bytes)} given back`;
  }
  if ('scrub' in result) {
    const { packs = 0, bytes = 0, damaged = 0 } = result.scrub;
    return `${many(packs, 'pack')}, ${size(bytes)} read; ${damaged === 0 ? 'all sound' : `${count(damaged)} damaged`}`;
  }
  if ('export' in result) return `${result.export.path}, ${size(result.export.file_bytes ?? 0)}`;
  const { folder, number, copied_bytes = 0, bytes = 0 } = result.backup;
  return `backup ${number} in ${folder}: ${size(copied_bytes)} copied of ${size(bytes)}`;
}

/** The next look at a list of operations, in milliseconds: soon while something runs. */
export function pace(operations: readonly Operation[]): number {
  return operations.some((operation) => operation.state === 'running') ? 1000 : 5000;
}
