// What a branch's record means: its link, how far behind it is, whether it is ready for a cut line, and what wants somebody's attention.
//
// Each judgement follows the datacenter's own where it has one (`is_ready` in datacenter/src/http/status.rs); what a branch did not tell is
// unknown, never good.

import type { Branch, OfflineBoot, Pool, PoolReadiness, Volume } from '../api/schema';
import { duration, many } from './units';

export type Tone = 'good' | 'bad' | 'warn' | 'busy' | 'quiet';

/** A judgement: a word, its colour, and why. */
export interface Verdict {
  tone: Tone;
  word: string;
  why?: string;
}

const URGENT: readonly Tone[] = ['bad', 'warn', 'busy', 'good', 'quiet'];

/** What judgements are sorted by: what is worse comes first. */
export const urgency = ({ tone }: Verdict): number => URGENT.indexOf(tone);

/** A report older than this is told as old while the link is up, in seconds. */
const REPORT_OLD_S = 120;
/** Days before a certificate's end at which it wants attention. */
const CERTIFICATE_S = 14 * 86_400;

export function link(branch: Branch): Verdict {
  switch (branch.state) {
    case 'invited':
      return { tone: 'quiet', word: 'Invited', why: 'it has a join token and has not used it yet' };
    case 'revoked':
      return { tone: 'quiet', word: 'Revoked', why: 'its certificate is refused' };
    case 'joined':
      return branch.online
        ? { tone: 'good', word: 'Up' }
        : { tone: 'bad', word: 'Down', why: 'desktops there go on; nothing new reaches the branch' };
  }
}

/** What a branch told of the version that a pool is to run now; nothing if it told of another. */
export function told(branch: Branch, pool: Pool): PoolReadiness | undefined {
  const readiness = branch.status?.readiness?.pools?.find((one) => one.pool === pool.name);
  return readiness?.version === pool.version_id ? readiness : undefined;
}

/** Whether one pool's desktops boot with the line cut. */
export function poolReady(branch: Branch, pool: Pool): Verdict {
  const one = told(branch, pool);
  const boots: OfflineBoot = one?.boots ?? 'unknown';
  if (boots === 'yes') return { tone: 'good', word: 'Ready' };
  if (one === undefined) {
    const older = branch.status && !branch.status.readiness;
    return { tone: 'warn', word: 'Not told', why: older ? 'its branch server is older' : 'the branch does not have the version yet' };
  }
  return boots === 'no'
    ? { tone: 'bad', word: 'Not ready', why: one.reason || 'something that its boots read is missing' }
    : { tone: 'warn', word: 'Unknown', why: one.reason || 'no boot of this version was recorded yet' };
}

/** Whether all of a branch's pools boot with the line cut. */
export function ready(branch: Branch): Verdict {
  if (branch.state !== 'joined') return { tone: 'quiet', word: '–' };
  if (branch.pools.length === 0) return { tone: 'quiet', word: 'No pools' };
  const not = branch.pools
    .map((pool) => ({ pool, verdict: poolReady(branch, pool) }))
    .filter(({ verdict }) => verdict.tone !== 'good');
  if (not.length === 0) return { tone: 'good', word: 'Ready' };
  const worst = not.some(({ verdict }) => verdict.tone === 'bad');
  return {
    tone: worst ? 'bad' : 'warn',
    word: worst ? 'Not ready' : 'Unknown',
    why: not.map(({ pool, verdict }) => `${pool.name}: ${verdict.why ?? verdict.word}`).join('; '),
  };
}

/** Reads that the cache answered, of all; none before the first. */
export function cacheHits(branch: Branch): { part: number; whole: number } | undefined {
  const { hits = 0, misses = 0 } = branch.status?.cache ?? {};
  return hits + misses > 0 ? { part: hits, whole: hits + misses } : undefined;
}

/** How far a branch is behind: its orders, its report, and what its users wrote that is not here. Without its volumes the last is unknown. */
export function lag(branch: Branch, volumes: readonly Volume[] | undefined, nowS: number): Verdict {
  if (branch.state !== 'joined') return { tone: 'quiet', word: '–' };
  const { status } = branch;
  if (!status) return { tone: 'warn', word: 'Not told', why: 'it has not reported yet' };
  const follows = status.assignment_counter ?? undefined;
  if (branch.online && follows !== undefined && follows < branch.assignment_counter) {
    return { tone: 'warn', word: 'Orders', why: `follows assignment ${follows} of ${branch.assignment_counter}` };
  }
  const old = nowS - (status.reported_unix_s ?? 0);
  if (branch.online && old > REPORT_OLD_S) {
    return { tone: 'warn', word: duration(old), why: 'since its last report, although its link is up' };
  }
  if (!volumes) return { tone: 'quiet', word: 'Current', why: 'there are too many volumes to tell here what is not written back; its own page tells' };
  const held = volumes.filter((volume) => volume.lease?.branch === branch.name);
  const worst = Math.max(0, ...held.map((volume) => volume.rpo_s ?? 0));
  if (worst > 0) {
    const tone = worst > 3600 ? 'bad' : worst > 300 ? 'warn' : 'good';
    return { tone, word: duration(worst), why: 'of work would be lost at most if the branch were lost now' };
  }
  return { tone: 'good', word: 'None', why: held.length > 0 ? 'all that users wrote is here' : 'nothing is leased to it' };
}

/** What somebody ought to look at, most urgent first. */
export function concerns(branch: Branch, nowS: number): string[] {
  if (branch.state !== 'joined') return [];
  const found: string[] = [];
  if (!branch.online) found.push('its link is down');
  if (branch.ahead) {
    const lost = branch.ahead.lost_pools ?? [];
    found.push(
      `it follows assignment ${branch.ahead.counter ?? 0}, which this datacenter does not remember${lost.length > 0 ? `; assign or remove ${lost.join(', ')}` : ''}`,
    );
  }
  const damaged = branch.status?.cache?.quarantined ?? 0;
  if (damaged > 0) found.push(`${many(damaged, 'damaged chunk')} in its cache, not fetched again yet`);
  const left = (branch.certificate_expires_unix_s ?? Infinity) - nowS;
  if (left < CERTIFICATE_S) found.push(left > 0 ? `its certificate ends in ${duration(left)}` : 'its certificate has ended');
  const readiness = ready(branch);
  if (readiness.tone === 'bad') found.push(`not ready for a cut line: ${readiness.why}`);
  return found;
}

/** Bytes that came over all links since their branch servers started. */
export function received(branches: readonly Branch[]): number {
  return branches.reduce((sum, branch) => sum + (branch.status?.counters?.received_bytes ?? 0), 0);
}
