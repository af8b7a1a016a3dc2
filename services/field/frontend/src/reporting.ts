// Reports: positions at an interval while the app is open, alarms at once, and whatever couldn't be sent, later.

import { type KeptReport, forgetReport, keep, keepReport, setting, waitingReports } from "./kept";
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
  waiting: number;
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

interface Battery {
  level: number;
  charging: boolean;
}

export class Reporting {
  readonly state: State = { location: "unknown", sent_ms: 0, waiting: 0, connected: true, ended: false, panic: "", low_pct: null };
  place: { lat: number; lon: number } | undefined; // her newest position
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
    void this.report();
  }

  // A panic doesn't wait for a position: it counts by itself, and the position follows.
  async panic(visible: boolean): Promise<void> {
    if (visible) this.set({ panic: "sending" });
    const report: KeptReport = { id: crypto.randomUUID(), at_ms: Date.now(), alarm: "panic" };
    if (visible) this.shownPanic = report.id;
    await keepReport(report);
    await this.sendAlone(report);
    await this.send();
    void this.report();
  }

  // Beside whatever is under way, which may hang on a bad network.
  private async sendAlone(report: KeptReport): Promise<void> {
    const answer = await call<Answer>("POST", "/api/reports", { reports: [report] }).catch(() => undefined);
    if (answer?.results[0]?.outcome !== "stored") return;
    await forgetReport(report.id);
    this.noteStored(report.id);
  }

  private noteStored(id: string): void {
    if (id === this.shownPanic) this.set({ panic: "sent" });
  }

  private async report(maxAgeMs = FIX_MAX_AGE_MS): Promise<void> {
    clearTimeout(this.timer);
    if (this.state.ended) return;
    const charge = await this.charge();
    const position = await this.position(maxAgeMs);
    if (position) {
      const { latitude, longitude, accuracy } = position.coords;
      this.place = { lat: latitude, lon: longitude };
      const at_ms = Math.round(Math.min(position.timestamp, Date.now()));
      // A position that is handed out once more is still one measurement. Repeats would count as positions that agree.
      const measured = [position.timestamp, latitude, longitude].join();
      if (measured !== this.reported) {
        const report: KeptReport = { id: crypto.randomUUID(), at_ms, lat: latitude, lon: longitude, accuracy };
        await keepReport(charge === undefined ? report : { ...report, battery: charge });
        this.reported = measured;
      }
      const isOld = Date.now() - at_ms > OLD_FIX_MS;
      this.set({ location: isOld ? "unavailable" : accuracy > 500 ? "vague" : "good" });
    }
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

  private position(maxAgeMs: number): Promise<GeolocationPosition | undefined> {
    return new Promise((resolve) => {
      if (!navigator.geolocation) {
        this.set({ location: "unavailable" });
        resolve(undefined);
        return;
      }
      const failed = (error: GeolocationPositionError) => {
        this.set({ location: error.code === error.PERMISSION_DENIED ? "denied" : "unavailable" });
        resolve(undefined);
      };
      const options = { enableHighAccuracy: true, timeout: FIX_PATIENCE_MS, maximumAge: maxAgeMs };
      navigator.geolocation.getCurrentPosition(resolve, failed, options);
    });
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
    this.set({ waiting: (await waitingReports()).length });
  }

  private set(change: Partial<State>): void {
    Object.assign(this.state, change);
    this.changed();
  }
}
