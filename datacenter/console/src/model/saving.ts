// How much the store saves: what versions would take as they are, beside what they take here.

import type { StoreReport, Version } from '../api/schema';

/** Times that `whole` is `part`, for people; none where nothing is stored. */
export function ratio(whole: number, part: number): string {
  return part > 0 ? `${(whole / part).toFixed(whole / part < 10 ? 1 : 0)} : 1` : '–';
}

/** What a version's data would be, over what it added to the store. */
export function ofVersion(version: Version): string {
  return ratio(version.data_bytes, version.stored_bytes);
}

/** What the versions' data would be, each by itself, over what the store takes. */
export function ofStore(versions: readonly Version[], store: Pick<StoreReport, 'stored_bytes'>): string {
  return ratio(
    versions.reduce((sum, version) => sum + version.data_bytes, 0),
    store.stored_bytes ?? 0,
  );
}

/** A version's parent among its image's versions. */
export function parentOf(version: Version, versions: readonly Version[]): Version | undefined {
  return versions.find((one) => one.id === version.parent);
}
