// Tells the police whether this phone gets positions and whether the app is on the screen, each time that it changes. No place is in it.

import type { Location } from "./reporting";
import { Refused, call } from "./server";

const LONGEST_AGE_S = 86_400;

export class HealthReports {
  private current = "";
  private sinceMs = 0;
  private known = ""; // what the server knows
  private sending = false;

  // Called at each change, and every few seconds, so that what didn't get through goes with the next call.
  note(location: Location): void {
    const screen = document.visibilityState === "visible" ? "open" : "hidden";
    if (location === "unknown" && screen === "open") return; // a moment after the start
    const now = JSON.stringify({ location, screen });
    if (now !== this.current) this.sinceMs = Date.now();
    this.current = now;
    if (!this.sending) void this.send();
  }

  private async send(): Promise<void> {
    this.sending = true;
    try {
      while (this.current !== this.known) {
        const state = this.current;
        const ageS = Math.floor(Math.max(0, Date.now() - this.sinceMs) / 1_000);
        await call("POST", "/api/health", { ...JSON.parse(state), age_s: Math.min(ageS, LONGEST_AGE_S) }).catch((error) => {
          if (!(error instanceof Refused && error.status < 429 && error.status !== 408)) throw error;
        });
        this.known = state;
      }
    } catch {
      // Later.
    } finally {
      this.sending = false;
    }
  }
}
