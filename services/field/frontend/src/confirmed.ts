// How long ago the server confirmed the instruction. What nobody confirmed for two minutes isn't shown as valid: the wearer may be elsewhere.

import { keep, setting } from "./kept";

/** Time after which an instruction isn't shown any more unless it was confirmed, milliseconds. */
export const UNCONFIRMED_MS = 120_000;

/** A moment by the phone's clock and by the page's own. The clock may be set while the page runs, and the page's own may stand still
 * while the phone sleeps. */
export interface Moment {
  wallMs: number;
  pageMs: number;
}

export const moment = (): Moment => ({ wallMs: Date.now(), pageMs: performance.now() });

/** Time since a moment, milliseconds: the longer one of both clocks. */
export const since = (before: Moment): number => Math.max(Date.now() - before.wallMs, performance.now() - before.pageMs);

interface KeptConfirmation {
  as_of_ms: number; // mesh time
  present: boolean;
}

/** Notes that the server has confirmed what it answered. The page and the service worker both do. No text of a notice is kept. */
export const keepConfirmation = (asOfMs: number, present: boolean) => keep("confirmed", { as_of_ms: asOfMs, present } satisfies KeptConfirmation);

export class Confirmation {
  /** Mesh time of the newest answer, of this page or an earlier one, milliseconds; 0 without one. */
  asOfMs = 0;
  /** Whether there was an instruction then. */
  hadPresent = false;
  private asked: Moment | undefined;

  /** Reads what an earlier page or the service worker has kept. */
  async load(): Promise<void> {
    const kept = await setting<KeptConfirmation>("confirmed");
    if (!kept || kept.as_of_ms <= this.asOfMs) return;
    this.asOfMs = kept.as_of_ms;
    this.hadPresent = kept.present;
  }

  /** Notes an answer to a request of this page. It counts from the moment of the request, since an answer may lie in a sleeping phone. */
  async note(asked: Moment, asOfMs: number, present: boolean): Promise<void> {
    this.asked = asked;
    this.asOfMs = asOfMs;
    this.hadPresent = present;
    await keepConfirmation(asOfMs, present);
  }

  /** Whether what this page was answered is still taken as valid. */
  isRecent(): boolean {
    return this.asked !== undefined && since(this.asked) < UNCONFIRMED_MS;
  }
}
