// Reports: positions at an interval while the app is open, alarms at once, and whatever couldn't be sent, later.

import type { Place } from "./geo";
import { type KeptReport, forgetReport, isWaiting, keep, keepReport, setting, waitingReports } from "./kept";
import { Refused, call } from "./server";

const USUAL_INTERVAL_S = 15;
const LOW_BATTERY_INTERVAL_S = 60;
const LOW_BATTERY = 0.15;
const BATCH = 50;
const RETRY_S = 5;
const FIX_PATIENCE_MS = 20_000;
const FIX_MAX_AGE_MS = 4_000;
const OLD_FIX_MS = 180_000; // the decision doesn't know her place any more; some browsers hand out old positions all the same

export type Location = "unknown" | "good" | "vague" | "denied" | "unavailable";
export interface State {
  location: Location;
  sent_ms: number;
  waiting: number; // positions that couldn't be sent
  connected: boolean;
  ended: boolean;
  panic: "" | "sending" | "sent";
  low_pct: number | null; // charge of a low battery; null for any other
}

interface Answer {
  results: { id: string; outcome: "stored" | "refused" | "later"; retry_after_s: number }[];
  interval_s: number | null;
  position_now: boolean;
}

/** A position that the phone measured. */
export interface Measured extends Place {
  at_ms: number; // by the phone's clock
  accuracy: number;
}

interface Battery {
  level: number;
  charging: boolean;
}

export class Reporting {
  readonly state: State = { location: "unknown", sent_ms: 0, waiting: 0, connected: true, ended: false, panic: "", low_pct: null };
  place: Measured | undefined; // her newest position
  private askedS: number | null = null;
  private sending: Promise<void> | undefined;
  private timer = 0;
  private retry = 0;
  private shownPanic = "";
  private reported = ""; // the newest position that was reported, with its time

  constructor(private readonly changed: () => void) {
    addEventListener("online", () => void this.send());
    document.addEventListener("visibilitychange", () => {
      if (document.visibilityState === "visible") void this.report();
    });
  }

  start(): void {
    void this.resume();
    void this.report();
  }

  // A visible panic doesn't wait for a position: it counts by itself, and the position follows.
  async panic(): Promise<void> {
    this.set({ panic: "sending" });
    const report: KeptReport = { id: crypto.randomUUID(), at_ms: Date.now(), alarm: "panic" };
    this.shownPanic = report.id;
    await keepReport(report);
    void this.sendUntilStored(report);
    void this.report();
  }

  // A silent panic, and her position once it has arrived. Neither touches the state, so that nothing on the screen changes, then or later.
  async silentPanic(): Promise<void> {
    const report: KeptReport = { id: crypto.randomUUID(), at_ms: Date.now(), alarm: "panic", silent: true };
    await keepReport(report);
    await this.sendUntilStored(report);
    const position = await fix(FIX_MAX_AGE_MS);
    if ("coords" in position && !this.isReported(position)) await this.sendAlone(await this.keepPosition(position));
  }

  // Panics that an earlier page couldn't send go first, before a position is measured.
  private async resume(): Promise<void> {
    for (const report of await waitingReports()) {
      if (report.alarm !== "panic") continue;
      if (!report.silent) {
        this.shownPanic = report.id;
        this.set({ panic: "sending" });
      }
      void this.sendUntilStored(report);
    }
  }

  // Beside whatever is under way, which may hang on a bad network.
  private async sendUntilStored(report: KeptReport): Promise<void> {
    while (!(await this.sendAlone(report)) && !this.state.ended && (await isWaiting(report.id))) {
      await new Promise((resolve) => setTimeout(resolve, 1_000 * RETRY_S));
    }
  }

  // Returns whether the server has stored the report, or never will.
  private async sendAlone(report: KeptReport): Promise<boolean> {
    const answer = await call<Answer>("POST", "/api/reports", { reports: [report] }).catch(() => undefined);
    const outcome = answer?.results[0]?.outcome ?? "later";
    if (outcome === "later") return false;
    await forgetReport(report.id);
    if (outcome === "stored") this.noteStored(report.id);
    return true;
  }

  private noteStored(id: string): void {
    if (id === this.shownPanic) this.set({ panic: "sent" });
  }

  // A position that is handed out once more is still one measurement. Repeats would count as positions that agree.
  private isReported(position: GeolocationPosition): boolean {
    return this.reported === measurementOf(position);
  }

  private async keepPosition(position: GeolocationPosition, charge?: number): Promise<KeptReport> {
    const { latitude: lat, longitude: lon, accuracy } = position.coords;
    const at_ms = Math.round(Math.min(position.timestamp, Date.now()));
    const report: KeptReport = { id: crypto.randomUUID(), at_ms, lat, lon, accuracy, ...(charge === undefined ? {} : { battery: charge }) };
    this.reported = measurementOf(position);
    this.place = { lat, lon, accuracy, at_ms };
    await keepReport(report);
    return report;
  }

  private async report(maxAgeMs = FIX_MAX_AGE_MS): Promise<void> {
    clearTimeout(this.timer);
    if (this.state.ended) return;
    const charge = await this.charge();
    const position = await fix(maxAgeMs);
    if ("coords" in position) {
      if (!this.isReported(position)) await this.keepPosition(position, charge);
      const isOld = Date.now() - position.timestamp > OLD_FIX_MS;
      this.set({ location: isOld ? "unavailable" : position.coords.accuracy > 500 ? "vague" : "good" });
    } else this.set({ location: position.failed });
    const interval_s = this.interval();
    await this.send();
    clearTimeout(this.timer);
    this.timer = setTimeout(() => void this.report(), 1_000 * interval_s);
  }

  // The smallest interval that the decision asks for; a low battery gives way only when nobody asks.
  private interval(): number {
    return this.askedS ?? (this.state.low_pct === null ? USUAL_INTERVAL_S : LOW_BATTERY_INTERVAL_S);
  }

  // The battery's charge, percent; undefined on phones that don't tell it. A battery that becomes low is reported, and so is its charger.
  private async charge(): Promise<number | undefined> {
    const source = (navigator as Navigator & { getBattery?: () => Promise<Battery> }).getBattery;
    const battery = source ? await source.call(navigator).catch(() => undefined) : undefined;
    if (!battery) return undefined;
    const pct = Math.round(100 * battery.level);
    const low = !battery.charging && battery.level <= LOW_BATTERY;
    if (low !== ((await setting<boolean>("battery_low")) ?? false)) {
      await keepReport({ id: crypto.randomUUID(), at_ms: Date.now(), alarm: low ? "battery_low" : "battery_charging" });
      await keep("battery_low", low);
    }
    this.set({ low_pct: low ? pct : null });
    return pct;
  }

  send(): Promise<void> {
    this.sending ??= this.sendAll().finally(() => {
      this.sending = undefined;
    });
    return this.sending;
  }

  private async sendAll(): Promise<void> {
    let size = BATCH;
    for (;;) {
      const batch = (await waitingReports()).slice(0, size);
      if (batch.length === 0) break;
      let later = false;
      try {
        const answer = await call<Answer>("POST", "/api/reports", { reports: batch });
        for (const result of answer.results) {
          if (result.outcome === "later") later = true;
          else await forgetReport(result.id);
          if (result.outcome === "stored") this.noteStored(result.id);
        }
        this.askedS = answer.interval_s;
        const stored = answer.results.some((result) => result.outcome === "stored");
        this.set({ connected: !later, ...(stored ? { sent_ms: Date.now() } : {}) });
        if (answer.position_now) setTimeout(() => void this.report(0), 0);
      } catch (error) {
        if (error instanceof Refused && error.status === 401) this.set({ ended: true });
        // A report that the server can't read mustn't take the others with it.
        const unreadable = error instanceof Refused && error.status === 400;
        if (unreadable && batch.length === 1) await forgetReport(batch[0]!.id);
        else if (unreadable) size = 1;
        else later = true;
        this.set({ connected: unreadable });
      }
      if (later) {
        clearTimeout(this.retry);
        if (!this.state.ended) this.retry = setTimeout(() => void this.send(), 1_000 * RETRY_S);
        break;
      }
    }
    this.set({ waiting: (await waitingReports()).filter((report) => !report.alarm).length });
  }

  private set(change: Partial<State>): void {
    Object.assign(this.state, change);
    this.changed();
  }
}

// The phone's position, or why there is none.
function fix(maxAgeMs: number): Promise<GeolocationPosition | { failed: Location }> {
  return new Promise((resolve) => {
    if (!navigator.geolocation) {
      resolve({ failed: "unavailable" });
      return;
    }
    const failed = (error: GeolocationPositionError) => resolve({ failed: error.code === error.PERMISSION_DENIED ? "denied" : "unavailable" });
    navigator.geolocation.getCurrentPosition(resolve, failed, { enableHighAccuracy: true, timeout: FIX_PATIENCE_MS, maximumAge: maxAgeMs });
  });
}

const measurementOf = ({ timestamp, coords }: GeolocationPosition): string => [timestamp, coords.latitude, coords.longitude].join();
