// What rolling a volume back costs, said before it is done. The words follow what the datacenter does (datacenter/src/volumes/back.rs).

import type { Volume, VolumeSnapshot } from '../api/schema';
import { duration, many } from './units';

export interface Loss {
  /** Work that the user will not see any more, in seconds; none if it is not known. */
  seconds: number | undefined;
  /** What happens, a sentence each. */
  sentences: string[];
  /** Whether the datacenter asks for force: a branch may run the desktop. */
  held: boolean;
}

/** What goes on behind a snapshot instead of what is there now. */
export function ofRollBack(volume: Volume, snapshot: VolumeSnapshot, nowS: number): Loss {
  const held = volume.lease != null;
  const since = snapshot.sealed_unix_s;
  // While a branch holds it, its user may be writing at this moment.
  const last = held ? nowS : (volume.applied_unix_s ?? undefined);
  const seconds = since > 0 && last !== undefined ? Math.max(0, last - since) : undefined;
  const what = volume.kind === 'user' ? "the user's files" : "the desktop's system";
  const sentences = [
    since === 0
      ? `All that was ever written to ${what} is taken out of use: the snapshot is what the volume began with.`
      : seconds === undefined
        ? `All that was written to ${what} after the snapshot is taken out of use.`
        : `${duration(seconds)} of work on ${what} is taken out of use.`,
  ];
  if (volume.lease) {
    sentences.push(
      `${volume.lease.branch} holds the volume: its lease is broken, the desktop is stopped, and what it wrote and has not sent yet becomes a fork.`,
    );
    if (volume.lag_records == null) sentences.push('How much that is nobody knows: the branch has not told.');
    else if (volume.lag_records > 0) sentences.push(`${many(volume.lag_records, 'record')} of that are not here yet.`);
  }
  sentences.push('What the datacenter has now stays as a snapshot that is kept until somebody deletes it: this can be undone by rolling back to that.');
  return { seconds, sentences, held };
}

/** What a snapshot is of, in a word or two. */
export const CAUSES: Record<VolumeSnapshot['cause'], string> = {
  policy: 'By policy',
  log_off: 'At log-off',
  asked: 'Asked for',
  frozen: 'Asked for, frozen',
};
