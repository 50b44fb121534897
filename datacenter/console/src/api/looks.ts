// What pages look at, each with its pace. Lists of things that IT makes are whole (1,000 branches are one request); those that users' work makes
// are cut where they grow long.

import { pace as paceOf } from '../model/work';
import { beginning, call, everything } from './client';
import { useLook } from './poll';
import type { Branch, Image, Operation, Version, Volume } from './schema';

const FLEET_MS = 5_000;
const SLOW_MS = 30_000;
/** So many volumes are looked at; a branch has at most 4,096. */
export const VOLUMES_MAX = 5_000;
/** So many of an operation's kind are told before older ones are asked for. */
const OPERATIONS = 200;

const branches = (signal: AbortSignal): Promise<Branch[]> =>
  everything(async (limit, after: string | undefined) => {
    const page = await call('GET /v1/branches', { query: { limit, ...(after ? { after } : {}) } }, signal);
    return { items: page.branches, next: page.next };
  });

/** Volumes, of one branch or of all; a realm may have more than a page should ask for again and again. */
export interface Volumes {
  items: Volume[];
  /** Whether there are more. */
  cut: boolean;
}

const volumes = (signal: AbortSignal, branch?: string): Promise<Volumes> =>
  beginning(async (limit, after: string | undefined) => {
    const query = { limit, ...(after ? { after } : {}), ...(branch ? { branch } : {}) };
    const page = await call('GET /v1/volumes', { query }, signal);
    return { items: page.volumes, next: page.next };
  }, VOLUMES_MAX);

const images = (signal: AbortSignal): Promise<Image[]> =>
  everything(async (limit, after: string | undefined) => {
    const page = await call('GET /v1/images', { query: { limit, ...(after ? { after } : {}) } }, signal);
    return { items: page.images, next: page.next };
  });

const versions = (signal: AbortSignal, image: string): Promise<Version[]> =>
  everything(async (limit, before: number | undefined) => {
    const query = { limit, ...(before ? { before } : {}) };
    const page = await call('GET /v1/images/{image}/versions', { path: { image }, query }, signal);
    return { items: page.versions, next: page.next };
  });

/** The datacenter, its branches, and what their users wrote. */
export const useFleet = () =>
  useLook(
    'fleet',
    async (signal) => {
      const [status, all, written] = await Promise.all([call('GET /v1/status', {}, signal), branches(signal), volumes(signal)]);
      return { status, branches: all, volumes: written };
    },
    FLEET_MS,
  );

export const useBranch = (branch: string) =>
  useLook(
    `branch ${branch}`,
    async (signal) => {
      const [one, written] = await Promise.all([call('GET /v1/branches/{branch}', { path: { branch } }, signal), volumes(signal, branch)]);
      return { branch: one, volumes: written };
    },
    FLEET_MS,
  );

/** Every image with its versions. */
export const useImages = () =>
  useLook(
    'images',
    async (signal) => {
      const [all, store] = await Promise.all([images(signal), call('GET /v1/store', {}, signal)]);
      const each = await Promise.all(all.map(async (image) => ({ image, versions: image.latest ? await versions(signal, image.name) : [] })));
      return { images: each, store };
    },
    SLOW_MS,
  );

export const useImage = (image: string) =>
  useLook(
    `image ${image}`,
    async (signal) => {
      const path = { image };
      const [one, all, deleted, retention] = await Promise.all([
        call('GET /v1/images/{image}', { path }, signal),
        versions(signal, image),
        call('GET /v1/images/{image}/deleted', { path }, signal),
        call('GET /v1/images/{image}/retention', { path }, signal),
      ]);
      return { image: one, versions: all, deleted: deleted.versions, retention };
    },
    SLOW_MS,
  );

/** A version, what differs from its parent, and where it is used. */
export const useVersion = (image: string, number: string) =>
  useLook(
    `version ${image}@${number}`,
    async (signal) => {
      const [version, all, fleet] = await Promise.all([
        call('GET /v1/images/{image}/versions/{number}', { path: { image, number } }, signal),
        versions(signal, image),
        branches(signal),
      ]);
      const parent = all.find((one) => one.id === version.parent);
      const diff = parent && (await call('GET /v1/diff', { query: { from: `${image}@${parent.number}`, to: `${image}@${version.number}` } }, signal));
      return { version, parent, diff, branches: fleet };
    },
    SLOW_MS,
  );

export const useDesktops = () =>
  useLook(
    'desktops',
    async (signal) => {
      const [all, written] = await Promise.all([branches(signal), volumes(signal)]);
      return { branches: all, volumes: written };
    },
    FLEET_MS,
  );

export const useVolume = (volume: string) =>
  useLook(`volume ${volume}`, (signal) => call('GET /v1/volumes/{volume}', { path: { volume } }, signal), FLEET_MS);

/** The newest operations; looked at each second while one runs. */
export const useOperations = () =>
  useLook('operations', async (signal) => (await call('GET /v1/operations', { query: { limit: OPERATIONS } }, signal)).operations, paceOf);

/** One operation; not looked at any more once it has ended. */
export const useOperation = (id: number) =>
  useLook(`operation ${id}`, (signal) => call('GET /v1/operations/{id}', { path: { id } }, signal), (operation: Operation) =>
    operation.state === 'running' ? 1000 : null,
  );

export const useStore = () =>
  useLook(
    'store',
    async (signal) => {
      const [store, status, recent] = await Promise.all([
        call('GET /v1/store', {}, signal),
        call('GET /v1/status', {}, signal),
        call('GET /v1/operations', { query: { limit: OPERATIONS } }, signal),
      ]);
      return { store, status, operations: recent.operations };
    },
    FLEET_MS,
  );
