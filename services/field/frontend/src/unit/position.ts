// The unit's own position and status to the roster, while the page is open. Only the newest counts, so nothing is kept.

import { Refused, call } from "../server";

const INTERVAL_MS = 15_000;
const BUSY_INTERVAL_MS = 5_000; // while it has an assignment
const QUIET_MS = 60_000;

export class Position {
  status = "available";
  hasTask = false;
  location: "unknown" | "good" | "denied" | "unavailable" = "unknown";
  sent_ms = 0;
  connected = true;
  point: { lat: number; lon: number } | undefined;
  private watch: number | undefined;
  private timer = 0;

  constructor(
    private readonly changed: () => void,
    private readonly ended: (code: string) => void,
  ) {}

  // The first report needs the status that the roster has: a reloaded page must not make a busy unit available.
  start(status: string): void {
    this.status = status;
    if (this.watch === undefined && navigator.geolocation) {
      const options = { enableHighAccuracy: true, timeout: 30_000, maximumAge: 5_000 };
      this.watch = navigator.geolocation.watchPosition(
        ({ coords }) => {
          this.point = { lat: coords.latitude, lon: coords.longitude };
          this.location = "good";
          this.changed();
        },
        (error) => {
          this.location = error.code === error.PERMISSION_DENIED ? "denied" : "unavailable";
          this.changed();
        },
        options,
      );
    }
    void this.report();
  }

  stop(): void {
    clearTimeout(this.timer);
    if (this.watch !== undefined) navigator.geolocation.clearWatch(this.watch);
    this.watch = undefined;
  }

  get isQuiet(): boolean {
    return this.sent_ms > 0 && Date.now() - this.sent_ms > QUIET_MS;
  }

  async report(): Promise<void> {
    clearTimeout(this.timer);
    try {
      // A place that the phone knows no longer isn't where the unit is now: the roster keeps it with its own time.
      const point = this.location === "good" ? this.point : undefined;
      await call("POST", "/api/unit/report", { status: this.status, ...(point ?? {}) });
      this.sent_ms = Date.now();
      this.connected = true;
    } catch (error) {
      if (error instanceof Refused && error.status === 401) {
        this.ended(error.code);
        return;
      }
      this.connected = error instanceof Refused;
    }
    this.changed();
    clearTimeout(this.timer);
    this.timer = setTimeout(() => void this.report(), this.hasTask ? BUSY_INTERVAL_MS : INTERVAL_MS);
  }
}
