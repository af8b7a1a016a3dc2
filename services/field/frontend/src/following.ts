// Follows the notices of this phone: a request that waits for news, one after the other.

import { Confirmation, moment } from "./confirmed";
import { type Notices, Refused, call } from "./server";

const RETRY_MS = 3_000;
const CHECKED_WITHIN_MS = 5_000; // then a page that was just opened says that it has no connection

/** How far what the page was answered can be relied on. */
export type Reliance = "checking" | "confirmed" | "unconfirmed";

export class Following {
  readonly confirmation = new Confirmation();
  /** The newest answer; undefined before the first. */
  answer: Notices | undefined;
  /** The last request had no answer. */
  failed = false;
  /** Mesh time of the newest answer of an earlier page, milliseconds; 0 without one. */
  knownUntilMs = 0;
  private digest = "";
  private checkingUntilMs = 0; // by the page's own clock
  private request = new AbortController();
  private wake: () => void = () => undefined;

  /** `changed` is called for each answer, `ended` once when the server doesn't know this phone any more. */
  constructor(
    private readonly changed: (isNews: boolean) => void,
    private readonly ended: () => void,
  ) {
    addEventListener("online", () => this.renew());
    document.addEventListener("visibilitychange", () => document.visibilityState === "visible" && this.renew());
  }

  get reliance(): Reliance {
    if (this.answer && this.confirmation.isRecent()) return "confirmed";
    return performance.now() < this.checkingUntilMs ? "checking" : "unconfirmed";
  }

  async run(): Promise<void> {
    await this.confirmation.load();
    this.knownUntilMs = this.confirmation.asOfMs;
    let waits = false;
    this.check();
    for (;;) {
      this.request = new AbortController();
      const asked = moment();
      try {
        // Without waiting at first: the answer confirms what is shown, or replaces it, at once.
        const answer = await call<Notices>("GET", `/api/notices?${waits ? "wait=1&" : ""}known=${this.digest}`, undefined, this.request.signal);
        await this.confirmation.note(asked, answer.now_ms, answer.present?.is_over === false);
        const isNews = answer.digest !== this.digest;
        this.answer = answer;
        this.digest = answer.digest;
        this.failed = false;
        waits = true;
        this.changed(isNews);
      } catch (error) {
        if (error instanceof Refused && error.status === 401) {
          this.ended();
          return;
        }
        waits = false;
        if (this.request.signal.aborted) continue;
        this.failed = true;
        this.checkingUntilMs = 0;
        this.changed(false);
        await this.pause(RETRY_MS);
      }
    }
  }

  // The network is back, or somebody looks at the screen: a request that hangs since then isn't waited for.
  private renew(): void {
    this.check();
    this.request.abort();
    this.wake();
  }

  private check(): void {
    this.checkingUntilMs = performance.now() + CHECKED_WITHIN_MS;
  }

  private pause(ms: number): Promise<void> {
    return new Promise((resolve) => {
      const timer = setTimeout(resolve, ms);
      this.wake = () => {
        clearTimeout(timer);
        resolve();
      };
    });
  }
}
