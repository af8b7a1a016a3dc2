// The one present instruction, and the earlier notices below. What it shows is what the server confirmed within two minutes.

import type { Following } from "./following";
import type { Instruction, Notice } from "./server";
import { at } from "./times";

const find = <E extends HTMLElement = HTMLElement>(id: string) => document.getElementById(id) as E;

export class InstructionView {
  private drawn = "";
  private announced = "";
  private drawnEarlier = "";
  private readonly answered = new Set<string>();

  constructor(
    private readonly following: Following,
    private readonly t: (name: string) => string,
    private readonly answer: (noticeId: string, choice: number) => void,
  ) {}

  /** The instruction on the screen; undefined if none is. */
  get shown(): Instruction | undefined {
    return this.following.reliance === "confirmed" ? (this.following.answer?.present ?? undefined) : undefined;
  }

  draw(): void {
    const { reliance } = this.following;
    const present = this.shown;
    const { asOfMs, hadPresent } = this.following.confirmation;
    const state = present ? "present" : reliance === "confirmed" ? "none" : reliance;
    const drawn = JSON.stringify([document.documentElement.lang, state, present, present && this.answered.has(present.id), state === "unconfirmed" && [asOfMs, hadPresent]]);
    if (drawn !== this.drawn) {
      this.drawn = drawn;
      find("instruction").dataset["state"] = state;
      find("instruction").classList.toggle("over", present?.is_over ?? false);
      this.announce(present);
      find("present-times").replaceChildren(...(present ? this.times(present) : []));
      find("answers").replaceChildren(...(present ? this.answers(present) : []));
      find("full").hidden = !present?.act || present.is_over;
      find("full-text").textContent = present?.text ?? "";
      find("full-text").lang = present?.language ?? "";
      this.drawAbsent(state, asOfMs, hadPresent);
    }
    this.drawEarlier(reliance === "confirmed" ? (this.following.answer?.earlier ?? []) : []);
  }

  // A screen reader says the words when the instruction is replaced. A repetition changes its times alone, so it isn't read again.
  private announce(present: Instruction | undefined): void {
    // The end of an instruction is one sentence: what to do alone wouldn't say that anything has ended.
    const words = !present ? [] : present.is_over ? [present.text] : [present.act || present.text, present.who, present.where];
    const announced = JSON.stringify([present?.id, ...words]);
    if (announced === this.announced) return;
    this.announced = announced;
    find("present").dataset["notice"] = present?.id ?? "";
    find("present").lang = present?.language ?? "";
    const lines = words.map((text, index) => Object.assign(document.createElement("p"), { textContent: text, className: ["act", "who", "where"][index]! }));
    find("present").replaceChildren(...lines.filter((line) => line.textContent));
  }

  private times(present: Instruction): HTMLElement[] {
    const { since_ms, sent_ms, repeated_ms, is_over } = present;
    const lines = is_over ? [["over_at", sent_ms] as const] : [["since", since_ms] as const, ...(repeated_ms > sent_ms ? [["repeated", repeated_ms] as const] : [])];
    return lines.map(([name, ms]) => Object.assign(document.createElement("span"), { textContent: this.t(name).replace("{time}", at(ms)) }));
  }

  // Three answers, alike in size and colour. The same happens after each, at once, and nothing remembers which it was.
  private answers(present: Instruction): HTMLElement[] {
    if (this.answered.has(present.id)) return [Object.assign(document.createElement("p"), { textContent: this.t("answered") })];
    if (!present.asks_answer) return [];
    return [1, 2, 3].map((choice) => {
      const button = Object.assign(document.createElement("button"), { type: "button", textContent: this.t(`answer_${choice}`) });
      button.addEventListener("click", () => {
        this.answered.add(present.id);
        this.answer(present.id, choice);
        this.draw();
      });
      return button;
    });
  }

  // Without a connection: advice that is right wherever he is, and no direction.
  private drawAbsent(state: string, asOfMs: number, hadPresent: boolean): void {
    const lines: [string, string][] = [];
    if (state === "checking") lines.push(["", this.t("checking")]);
    if (state === "none") lines.push(["", this.t("no_notice")]);
    if (state === "unconfirmed") {
      lines.push(["as-of", asOfMs ? this.t("as_of").replace("{time}", at(asOfMs)) : this.t("not_connected")]);
      const isUnknown = !asOfMs;
      lines.push(["", this.t(isUnknown ? "unknown_now" : hadPresent ? "warned_then" : "quiet_then")]);
      lines.push([hadPresent ? "act" : "", this.t("advice")]);
      lines.push(["", this.t("advice_112")]);
    }
    find("absent").replaceChildren(...lines.map(([className, textContent]) => Object.assign(document.createElement("p"), { className, textContent })));
  }

  // Folded, the newest first. They say where he was, so they go with the connection.
  private drawEarlier(earlier: Notice[]): void {
    const drawn = JSON.stringify([document.documentElement.lang, earlier]);
    if (drawn === this.drawnEarlier) return;
    this.drawnEarlier = drawn;
    find("earlier").hidden = earlier.length === 0;
    find("earlier-title").textContent = this.t("earlier").replace("{count}", String(earlier.length));
    find("notices").replaceChildren(
      ...earlier.map((notice) => {
        const element = document.createElement("li");
        const time = Object.assign(document.createElement("time"), { dateTime: new Date(notice.sent_ms).toISOString(), textContent: at(notice.sent_ms) });
        const text = Object.assign(document.createElement("p"), { textContent: notice.text, lang: notice.language });
        element.append(time, text);
        return element;
      }),
    );
  }
}
