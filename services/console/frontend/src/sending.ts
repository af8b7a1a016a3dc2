// The part of the card in which a desk sends a unit: the units that can go, the nearest free one chosen, and beside them a unit that was
// sent by radio. The list is read again while it is open. No row changes its place then, and the choice never goes to another unit by itself.

import { byId, make } from "./page";
import type { Assignment, Incident } from "./rows";
import type { Words } from "./words";

interface Candidate {
  id: string;
  class: string;
  /** What it does: FREE, BUSY or BUSY_IN. */
  work: string;
  /** The incident that it works on; empty for none. */
  incident: string;
  /** Distance to the destination in m, and time to drive there in s; null where it is unknown. */
  distance: number | null;
  travel: number | null;
  /** State of this assignment's offer to it; empty where it wasn't asked. */
  offer: string;
  /** Officer who asked it; empty where the leg asked it by itself. */
  by: string;
  /** Whether the leg would ask it next. */
  next: boolean;
  /** Whether it can be asked now. */
  can: boolean;
}

interface Listed {
  /** Whether the leg has a roster. */
  roster: boolean;
  exercise: boolean;
  state: string;
  /** The newest offer to any unit or desk. */
  offer: number;
  /** The unit that is proposed; empty for none. */
  nearest: string;
  /** Whether any unit is free. */
  free: boolean;
  /** Whether somebody has to be sent still. */
  open: boolean;
  units: Candidate[];
}

interface Said {
  text: string;
  isBad: boolean;
}

const NOTHING: Said = { text: "", isBad: false };
/** Interval at which an open list is read again, in ms. */
const READ_INTERVAL_MS = 2_000;
const ASKED = "UNIT_ASKED";

export class Sending {
  #part = byId("sending");
  #units = byId("send-units");
  #now = byId<HTMLButtonElement>("send-now");
  #radio = byId<HTMLFormElement>("radio-form");
  #incident = "";
  #assignment = "";
  /** Newest offer that the card showed when the list was opened: it counts while the list can't be read. */
  #offer = 0;
  #listed: Listed | undefined;
  #chosen = "";
  /** What the list has to say, and whether it is bad news. */
  #said: Said = NOTHING;
  #rows = new Map<string, HTMLLabelElement>();
  /** Counts readings, so that an answer that comes late is dropped. */
  #reading = 0;
  /** Counts openings, so that a refusal is shown beside the destination that it is about. */
  #opening = 0;
  #isSending = false;

  /** `deliver` sends a form and returns why it was refused, or an empty text. */
  constructor(
    private readonly words: Words,
    private readonly deliver: (incident: string, act: "send" | "radio", body: URLSearchParams) => Promise<string>,
  ) {
    this.#now.addEventListener("click", (event) => {
      // The second click of a double click on the button that opened the list.
      if (event.detail < 2) this.submit();
    });
    byId("send-cancel").addEventListener("click", () => this.close());
    byId("send-form").addEventListener("submit", (event) => event.preventDefault());
    this.#radio.addEventListener("submit", (event) => {
      event.preventDefault();
      void this.#send("radio", { unit_name: String(new FormData(this.#radio).get("unit_name")) });
    });
    this.#part.addEventListener("keydown", (event) => this.#key(event));
    setInterval(() => {
      if (this.isOpen) void this.#read();
    }, READ_INTERVAL_MS);
  }

  get isOpen(): boolean {
    return !this.#part.hidden;
  }

  /** Shows the units for a destination, whose name it is. */
  open(incident: Incident, to: Assignment, name: string): void {
    this.#incident = incident.id;
    this.#assignment = to.id;
    this.#offer = Math.max(to.offer, ...to.units.map((offer) => offer.number));
    this.#opening += 1;
    this.#listed = undefined;
    this.#chosen = "";
    this.#rows.clear();
    this.#units.replaceChildren();
    this.#radio.reset();
    byId("h-sending").textContent = this.words.say("send_title", { to: name });
    this.#say({ text: this.words.say("send_reading"), isBad: false });
    this.#refused("");
    this.#part.hidden = false;
    this.#showButton();
    this.#now.focus();
    void this.#read();
  }

  close(): void {
    if (!this.isOpen) return;
    const hadFocus = this.#part.contains(document.activeElement);
    this.#part.hidden = true;
    this.#reading += 1;
    if (!hadFocus) return;
    const button = (selector: string): HTMLElement | null => document.querySelector(`[data-assignment="${this.#assignment}"] ${selector}`);
    (button("[data-act^=open]") ?? button("button") ?? byId("card")).focus();
  }

  /** Reads an open list again, if it is of an incident that has changed. */
  changed(incident: string): void {
    if (this.isOpen && incident === this.#incident) void this.#read();
  }

  /** Asks the chosen unit. */
  submit(): void {
    if (this.#chosen) void this.#send("send", { unit: this.#chosen });
  }

  #key(event: KeyboardEvent): void {
    const on = event.target as HTMLElement;
    if (event.key === "Escape") {
      event.stopPropagation();
      this.close();
    } else if (on.matches("[type=radio]") && (event.key === "Enter" || event.key === "s")) {
      event.preventDefault();
      if (!event.repeat && !event.ctrlKey && !event.altKey && !event.metaKey) this.submit();
    }
  }

  async #send(act: "send" | "radio", given: Record<string, string>): Promise<void> {
    if (this.#isSending) return;
    this.#isSending = true;
    this.#showButton();
    const opening = this.#opening;
    const offer = String(this.#listed?.offer ?? this.#offer);
    const refused = await this.deliver(this.#incident, act, new URLSearchParams({ assignment: this.#assignment, offer, ...given }));
    this.#isSending = false;
    this.#showButton();
    if (opening !== this.#opening || !this.isOpen) return;
    if (!refused) this.close();
    else {
      await this.#read();
      this.#refused(refused);
      this.#say(NOTHING); // the refusal says it
    }
  }

  async #read(): Promise<void> {
    const reading = ++this.#reading;
    const path = `/incidents/${this.#incident}/candidates?assignment=${this.#assignment}`;
    const answer = await fetch(path, { headers: { Accept: "application/json" } }).catch(() => undefined);
    const listed = answer?.ok ? ((await answer.json()) as Listed) : undefined;
    if (reading !== this.#reading || !this.isOpen) return;
    if (listed) this.#draw(listed);
    else if (!this.#listed) this.#say({ text: this.words.say("send_away"), isBad: true });
  }

  #draw(listed: Listed): void {
    const before = this.#listed;
    const hadFocus = this.#part.contains(document.activeElement);
    this.#listed = listed;
    const ids = new Set(listed.units.map((unit) => unit.id));
    for (const unit of listed.exercise ? [] : listed.units) this.#drawRow(unit);
    for (const [id, row] of this.#rows) if (!ids.has(id)) this.#markGone(row);
    if (!before) this.#choose(listed.exercise ? "" : listed.nearest);
    this.#say(this.#situation(listed, before));
    this.#showButton();
    const isTyping = this.#radio.contains(document.activeElement);
    if ((!before && !isTyping) || (hadFocus && !this.#part.querySelector(":focus:enabled"))) this.#focus();
  }

  /** Where nothing is chosen, the focus stays in this part: a key would do something else on the page. */
  #focus(): void {
    const chosen = this.#units.querySelector<HTMLElement>("input:checked:enabled");
    (chosen ?? (this.#now.hidden ? (this.#radio.elements.namedItem("unit_name") as HTMLElement) : this.#now)).focus();
  }

  /** Takes back the choice of a unit that can't go any more. */
  #situation(listed: Listed, before: Listed | undefined): Said {
    const said = (isBad: boolean, key: string, values: Record<string, string> = {}): Said => ({ text: this.words.say(key, values), isBad });
    if (!listed.open) {
      this.#choose("");
      for (const row of this.#rows.values()) disable(row);
      return said(false, "send_over", { state: this.words.say(listed.state) });
    }
    if (listed.exercise) return said(false, "send_exercise");
    if (!listed.roster) return said(false, "send_no_roster");
    if (!listed.units.length) return said(true, "send_nobody");
    const chosen = listed.units.find((unit) => unit.id === this.#chosen);
    if (this.#chosen && !chosen) {
      const gone = this.#chosen;
      this.#choose("");
      return said(true, "send_chosen_gone", { unit: gone });
    }
    const wasAsked = new Set(before?.units.filter((unit) => unit.offer === ASKED).map((unit) => unit.id));
    const asked = before && listed.units.find((unit) => unit.offer === ASKED && !wasAsked.has(unit.id));
    if (asked) {
      // Another officer's choice may be this one's as well: nothing more is sent unless this officer chooses once more.
      if (asked.by || !chosen?.can) this.#choose("");
      return said(true, asked.by ? "send_other_asked" : "send_itself_asked", { by: asked.by, unit: asked.id });
    }
    if (chosen && !chosen.can) this.#choose("");
    if (!listed.free) return said(true, "send_no_free");
    return before && !this.#chosen ? this.#said : NOTHING;
  }

  #drawRow(unit: Candidate): void {
    const { words } = this;
    let row = this.#rows.get(unit.id);
    if (!row) {
      const input = make("input", { type: "radio", name: "unit", value: unit.id });
      input.addEventListener("change", () => {
        this.#choose(unit.id);
        this.#refused("");
        this.#say(NOTHING);
      });
      row = make("label", { class: "unit-choice", "data-unit": unit.id }, input, make("strong", {}, unit.id), make("span", { class: "work" }), make("small"));
      this.#rows.set(unit.id, row);
      this.#units.append(row);
    }
    (row.querySelector("input") as HTMLInputElement).disabled = !unit.can;
    row.classList.toggle("cannot", !unit.can);
    // An offer that has ended is history: the unit may be asked once more.
    const isOpen = Boolean(unit.offer) && !unit.can;
    row.dataset["work"] = isOpen ? unit.offer : unit.work;
    setText(row, ".work", this.#work(unit));
    const away = unit.distance === null ? "" : unit.distance >= 1_000 ? `${(unit.distance / 1_000).toFixed(1)} km` : `${unit.distance} m`;
    const drive = unit.travel === null ? "" : words.say("travel_min", { n: Math.max(1, Math.ceil(unit.travel / 60)) });
    const where = [away, drive].filter(Boolean).join(" · ") || words.say("unit_position_unknown");
    const before = unit.offer && !isOpen ? words.say(unit.offer) : "";
    const next = unit.next && unit.can ? words.say("send_next") : "";
    setText(row, "small", [unit.class, where, before, next].filter(Boolean).join(" · "));
  }

  #work(unit: Candidate): string {
    const { words } = this;
    if (unit.offer && !unit.can) return unit.by ? `${words.say(unit.offer)} (${unit.by})` : words.say(unit.offer);
    if (unit.work === "BUSY_IN") return words.say(unit.incident === this.#incident ? "work_here" : "work_elsewhere");
    return words.say(unit.work === "FREE" ? "AVAILABLE" : "BUSY");
  }

  /** A unit that went off duty keeps its row, since another row in its place would be the one under the cursor. */
  #markGone(row: HTMLLabelElement): void {
    disable(row);
    row.dataset["work"] = "UNIT_OFF_DUTY";
    setText(row, ".work", this.words.say("UNIT_OFF_DUTY"));
  }

  #choose(unit: string): void {
    this.#chosen = unit;
    for (const [id, row] of this.#rows) (row.querySelector("input") as HTMLInputElement).checked = id === unit;
    this.#showButton();
  }

  #showButton(): void {
    const { words } = this;
    this.#now.textContent = this.#chosen ? words.say("send_now", { unit: this.#chosen }) : words.say("send_choose");
    // Not disabled: a disabled button would lose the focus, and the keys would go to the page.
    this.#now.setAttribute("aria-disabled", String(!this.#chosen || this.#isSending));
    const hasUnits = !this.#listed || this.#rows.size > 0;
    this.#now.hidden = !hasUnits;
    this.#units.hidden = !this.#rows.size;
  }

  #say(said: Said): void {
    this.#said = said;
    const part = byId("send-said");
    part.hidden = !said.text;
    part.className = said.isBad ? "bad" : "";
    if (part.textContent !== said.text) part.textContent = said.text;
  }

  #refused(why: string): void {
    const shown = byId("send-refusal");
    shown.textContent = why;
    shown.hidden = !why;
  }
}

function disable(row: HTMLLabelElement): void {
  (row.querySelector("input") as HTMLInputElement).disabled = true;
  row.classList.add("cannot");
}

function setText(row: HTMLElement, selector: string, text: string): void {
  const part = row.querySelector(selector) as HTMLElement;
  if (part.textContent !== text) part.textContent = text;
}
