// What happened in incidents that are over: two sentences each, about the police's part alone. Nothing of it is kept on the phone.

import { Refused, call } from "./server";
import { at } from "./times";

const INTERVAL_MS = 60_000;
const FOLLOWED_MS = 3 * 3_600_000; // the police may stay with her long after the danger is over

interface Summary {
  began_ms: number;
  sent_ms: number | null;
  arrived_ms: number | null;
  ended_ms: number;
}

export class Afterwards {
  private summaries: Summary[] = [];
  private followedUntilMs = 0;
  private begun = false;
  private drawn = "";

  constructor(
    private readonly section: HTMLElement,
    private readonly t: (name: string) => string,
  ) {
    document.addEventListener("visibilitychange", () => void this.read());
    setInterval(() => Date.now() < this.followedUntilMs && void this.read(), INTERVAL_MS);
  }

  begin(): void {
    this.begun = true;
    void this.read();
  }

  // An incident is over for her, and soon for the police.
  follow(): void {
    this.followedUntilMs = Date.now() + FOLLOWED_MS;
    void this.read();
  }

  draw(): void {
    this.section.hidden = this.summaries.length === 0;
    const sentences = this.summaries.map((summary) => this.sentences(summary));
    if (sentences.join("\n") === this.drawn) return; // a screen reader would say the same text once more
    this.drawn = sentences.join("\n");
    const items = sentences.map((textContent) => Object.assign(document.createElement("p"), { textContent }));
    this.section.querySelector("#after-said")!.replaceChildren(...items);
  }

  private async read(): Promise<void> {
    if (!this.begun || document.visibilityState !== "visible") return;
    try {
      this.summaries = (await call<{ summaries: Summary[] }>("GET", "/api/afterwards")).summaries;
    } catch (error) {
      if (error instanceof Refused && error.status === 401) this.summaries = [];
    }
    this.draw();
  }

  private sentences(summary: Summary): string {
    const { began_ms, sent_ms, arrived_ms, ended_ms } = summary;
    const kind = arrived_ms !== null ? "arrived" : sent_ms !== null ? "sent" : "notified";
    return [this.t(`after_${kind}`), this.t("after_end")]
      .join(" ")
      .replace("{began}", at(began_ms))
      .replace("{sent}", at(sent_ms ?? 0))
      .replace("{arrived}", at(arrived_ms ?? 0))
      .replace("{ended}", at(ended_ms));
  }
}
