// The models of a server, by name.
import { isDUltraError } from '../errors';
import type { MaskedDiffusionModel } from '../generation/masked-diffusion-model';
import { ApiError } from './errors';

/** A model of a server: loaded, or how to load it on its first request. */
export type ServedModel = MaskedDiffusionModel | (() => Promise<MaskedDiffusionModel>);

interface Entry {
  readonly source: ServedModel;
  loading: Promise<MaskedDiffusionModel> | null;
  loaded: MaskedDiffusionModel | null;
  /** Bytes of its weights, once that is known. */
  bytes: number;
  /** Requests under way, and when the last one began. */
  users: number;
  lastUsed: number;
  /** Seconds since 1970. */
  readonly created: number;
}

/** A model while a request uses it. */
export interface Lease {
  model: MaskedDiffusionModel;
  release: () => void;
}

/** Loads models when they are asked for, one at a time, and puts out those that nobody uses where memory is short. */
export class Models {
  readonly #entries: ReadonlyMap<string, Entry>;
  readonly #maxBytes: number;
  #last: Promise<unknown> = Promise.resolve();
  #uses = 0;
  loads = 0;

  /** @param maxBytes of the weights of models that are loaded on request */
  constructor(models: Readonly<Record<string, ServedModel>>, maxBytes = Number.POSITIVE_INFINITY) {
    const created = Math.floor(Date.now() / 1000);
    this.#maxBytes = maxBytes;
    this.#entries = new Map(
      Object.entries(models).map(([name, source]) => {
        const loaded = typeof source === 'function' ? null : source;
        return [name, { source, loading: null, loaded, bytes: 0, users: 0, lastUsed: 0, created }];
      }),
    );
  }

  /** Entries of GET /v1/models. */
  get list() {
    return [...this.#entries].map(([id, { created }]) => ({ id, object: 'model', created, owned_by: 'dultra' }));
  }

  /** Those that are loaded. */
  get loaded(): [name: string, model: MaskedDiffusionModel][] {
    return [...this.#entries].flatMap(([name, { loaded }]) =>
      loaded ? [[name, loaded] as [string, typeof loaded]] : [],
    );
  }

  /** The name that a request means. Default: the first. @throws ApiError model_not_found */
  nameOf(name: string | undefined): string {
    const [first] = this.#entries.keys();
    const meant = name ?? first;
    if (!this.#entries.has(meant))
      throw new ApiError(404, 'model_not_found', `there is no model ${JSON.stringify(meant.slice(0, 200))}`, 'model');
    return meant;
  }

  /** The model of a name, loaded, and kept until it is released. */
  async lease(name: string): Promise<Lease> {
    const entry = this.#entries.get(name)!;
    entry.users++;
    entry.lastUsed = ++this.#uses;
    let isHeld = true;
    const release = () => {
      if (isHeld) entry.users--;
      isHeld = false;
    };
    try {
      return { model: await this.#get(entry), release };
    } catch (error) {
      release();
      throw error;
    }
  }

  /** Frees the models that were loaded on request. */
  dispose(): void {
    for (const entry of this.#entries.values()) if (typeof entry.source === 'function') putOut(entry);
  }

  #get(entry: Entry): Promise<MaskedDiffusionModel> {
    const { source } = entry;
    if (typeof source !== 'function') return Promise.resolve(source);
    if (!entry.loading) {
      const load = this.#last.then(() => this.#load(entry, source));
      // The next one is loaded whatever became of this one.
      this.#last = load.catch(() => {});
      entry.loading = load.catch((error) => {
        entry.loading = null;
        throw error;
      });
    }
    return entry.loading;
  }

  async #load(entry: Entry, source: () => Promise<MaskedDiffusionModel>): Promise<MaskedDiffusionModel> {
    // What it takes is known where it was loaded before.
    this.#makeRoom(entry);
    let model: MaskedDiffusionModel;
    for (;;)
      try {
        model = await source();
        break;
      } catch (error) {
        const isFull = isDUltraError(error) && error.code === 'OUT_OF_MEMORY';
        if (!isFull || !this.#putOutOne()) throw error;
      }
    this.loads++;
    entry.loaded = model;
    entry.bytes = model.info.weightBytes;
    this.#makeRoom(entry);
    return model;
  }

  /** Puts models out until `entry` has room. */
  #makeRoom(entry: Entry): void {
    const others = () => [...this.#entries.values()].filter((other) => other !== entry && isIdle(other, true));
    const bytes = () => others().reduce((sum, { bytes: some }) => sum + some, entry.bytes);
    while (bytes() > this.#maxBytes && this.#putOutOne());
  }

  /** Puts out the one that was asked for longest ago. @returns whether there was one */
  #putOutOne(): boolean {
    const idle = [...this.#entries.values()].filter((entry) => isIdle(entry, false));
    if (idle.length === 0) return false;
    putOut(idle.reduce((oldest, entry) => (entry.lastUsed < oldest.lastUsed ? entry : oldest)));
    return true;
  }
}

/** Whether it was loaded on request. @param orUsed also where requests use it */
const isIdle = ({ source, loaded, users }: Entry, orUsed: boolean): boolean =>
  typeof source === 'function' && loaded !== null && (orUsed || users === 0);

function putOut(entry: Entry): void {
  entry.loaded?.dispose();
  entry.loaded = null;
  entry.loading = null;
}
