// The chosen incident's card: who, where, what the own desk does next, what the others do, in words. Each part is redrawn only when its
// words change, so that the focus and a screen reader stay where they are.

import { byId, make, timeOfDay } from "./page";
import { LEGS, OFFERS, panicClass } from "./rows";
import type { Assignment, Incident } from "./rows";
import type { Words } from "./words";

export interface Party {
  id: string;
  name: string;
  birth: string;
  sex: string;
  phone: string;
}

/** An order with the names of its people, as it was disclosed. */
export interface NamedOrder {
  id: string;
  article: string;
  respondent: Party;
  persons: Party[];
  rings: number[];
  disclosure: string;
}

/** What a button of the card does: `open` shows the units that can be sent. */
export type Act = "acknowledge" | "open" | "progress" | "reject" | "close";

/** States of a unit that goes, one step after the other. No button reports the first: a desk sends a unit. */
const PROGRESSION = ["DISPATCHED", "EN_ROUTE", "ON_SCENE", "APPREHENDED"];
const CAN_BE_REFUSED = new Set([...OFFERS, "ACKNOWLEDGED", "DISPATCHED", "EN_ROUTE"]);
const CAN_BE_CLOSED = new Set(["ACKNOWLEDGED", ...PROGRESSION, "STOOD_DOWN"]);
const CAN_BE_SENT = new Set([...OFFERS, "ACKNOWLEDGED"]);
const ASKED = "UNIT_ASKED";

/** State that follows on the present one; undefined where no step does. */
export function nextState(to: Assignment): string | undefined {
  // A unit that has accepted was ordered to go by that: the next report is that it is on its way.
  const at = PROGRESSION.indexOf(to.state === "ACKNOWLEDGED" && to.unit ? "DISPATCHED" : to.state);
  return at < 0 ? undefined : PROGRESSION[at + 1];
}

/** Whether the desk can send a unit: somebody has to go, and no unit has accepted. */
export function canSend(to: Assignment): boolean {
  return !to.contact && CAN_BE_SENT.has(to.state) && !to.unit;
}

/** Whether a unit is asked and may still accept. */
export function isAsking(to: Assignment): boolean {
  return to.units.some((offer) => offer.state === ASKED);
}

export function canBeRefused(to: Assignment): boolean {
  return !to.contact && CAN_BE_REFUSED.has(to.state);
}

export function canBeClosed(to: Assignment): boolean {
  return !to.contact && CAN_BE_CLOSED.has(to.state);
}

export class Card {
  /** Whether the deadlines are those of this moment: without a connection none is shown. */
  isCurrent = true;
  #drawn = new Map<string, string>();

  constructor(
    private readonly words: Words,
    private readonly leg: string,
    private readonly now: () => number,
    private readonly nameOf: (incident: Incident, subject: string) => string,
    private readonly act: (act: Act, incident: Incident, to: Assignment, state?: string) => void,
    private readonly showNames: () => void,
  ) {}

  /** Draws the card of an incident; undefined for none. */
  draw(incident: Incident | undefined, names: NamedOrder[] | undefined, where: string[]): void {
    byId("card").hidden = !incident;
    byId("choose-one").hidden = Boolean(incident);
    if (!incident) return;
    byId("card").dataset["incident"] = incident.id;
    this.#head(incident);
    this.#who(incident, names);
    this.#part("card-where", where.join("\n"), () => where.map((line) => make("p", {}, line)));
    this.#own(incident);
    this.#others(incident);
  }

  /** Shows why an answer was refused; empty hides it. */
  refused(why: string): void {
    const shown = byId("card-refusal");
    shown.textContent = why;
    shown.hidden = !why;
  }

  #part(id: string, key: string, made: () => Node[]): void {
    if (this.#drawn.get(id) === key) return;
    this.#drawn.set(id, key);
    const part = byId(id);
    const focused = part.contains(document.activeElement) ? (document.activeElement as HTMLElement).dataset["act"] : undefined;
    part.replaceChildren(...made());
    if (focused) (part.querySelector<HTMLElement>(`[data-act="${focused}"]`) ?? part.querySelector<HTMLElement>("button"))?.focus();
  }

  #head(incident: Incident): void {
    const { words } = this;
    const about = { cause: words.say(incident.cause), at: timeOfDay(incident.opened) };
    const since =
      incident.ended === null
        ? words.say("cause_since", { ...about, for: words.time(this.now() - incident.opened) })
        : words.say("cause_over", { ...about, until: timeOfDay(incident.ended) });
    const panic = incident.panic ? words.panic(incident.panic) : "";
    this.#part("card-head", `${incident.id} ${panic} ${since} ${incident.demand} ${incident.exercise} ${incident.flags.join()}`, () => {
      const first = panic ? [make("p", { class: panicClass(incident) }, panic)] : [];
      const line = make("p", { class: "title" }, make("span", { class: `tag demand-${incident.demand}` }, words.say(incident.demand)), " ");
      if (incident.exercise) line.append(make("span", { class: "exercise" }, words.say("exercise")), " ");
      line.append(make("strong", {}, since), " ", make("a", { href: `/incidents/${incident.id}` }, words.say("open_page")));
      const flags = incident.flags.map((flag) => make("span", { class: "flag" }, words.say(`flag_${flag}`)));
      return [...first, line, ...(flags.length ? [make("p", { class: "flags" }, ...flags)] : [])];
    });
  }

  #who(incident: Incident, names: NamedOrder[] | undefined): void {
    const { words } = this;
    const isOver = incident.ended !== null;
    this.#part("card-who", `${incident.id} ${isOver} ${JSON.stringify(names)}`, () => {
      if (!this.leg) return [make("p", {}, words.say("who_none"))];
      if (!names && isOver) return [make("p", {}, words.say("who_over", { orders: incident.orders.join(", ") }))];
      if (!names) {
        const button = make("button", { type: "button", "data-act": "names", class: "do" }, words.say("show_names"));
        button.addEventListener("click", this.showNames);
        return [make("p", {}, words.say("who_hidden", { orders: incident.orders.join(", ") })), button];
      }
      return names.map((order) => {
        const people = [["respondent", order.respondent] as const, ...order.persons.map((person) => ["person", person] as const)];
        const lines = people.map(([role, party]) => make("p", {}, `${words.say(role)}: `, ...this.#party(party)));
        const basis = order.article ? `${words.say(`basis_${order.article}`)} · ` : "";
        const ledger = `${basis}${words.say("order")} ${order.id} · ${words.say("names_read", { id: order.disclosure })}`;
        return make("div", { class: "named" }, ...lines, make("small", {}, ledger));
      });
    });
  }

  #party(party: Party): (Node | string)[] {
    const more = [
      party.sex ? this.words.say(`sex_${party.sex}`) : "",
      party.birth ? this.words.say("born", { day: party.birth }) : "",
    ].filter(Boolean);
    const said: (Node | string)[] = [make("strong", {}, party.name || party.id), more.length ? ` (${more.join(", ")})` : ""];
    if (party.phone) said.push(" ", make("a", { href: `tel:${party.phone}` }, party.phone));
    return said;
  }

  #own(incident: Incident): void {
    if (!this.leg) return;
    const own = incident.legs[this.leg] ?? [];
    this.#part("card-own", JSON.stringify([own, own.map((to) => this.nameOf(incident, to.subject))]), () => {
      if (!own.length) return [make("p", {}, this.words.say("nothing_own"))];
      return own.map((to) => this.#destination(incident, to));
    });
    // The time that is left changes each second, and the buttons stay: a click is lost if its button is replaced while it is pressed.
    const now = this.now();
    for (const [i, line] of byId("card-own").querySelectorAll(".next").entries()) {
      const to = own[i];
      const said = to ? (this.isCurrent ? this.#nextWords(to, now) : this.words.say("next_unknown")) : "";
      if (line.textContent !== said) line.textContent = said;
    }
    for (const part of byId("card-own").querySelectorAll<HTMLElement>("[data-until]")) {
      const until = Number(part.dataset["until"]);
      const said = until > now ? this.words.left(until, now) : "";
      if (part.textContent !== said) part.textContent = said;
    }
  }

  #nextWords(to: Assignment, now: number): string {
    const { words } = this;
    const values = to.due === null ? {} : { at: timeOfDay(to.due), left: words.left(to.due, now) };
    if (to.contact) return words.say("next_contact");
    if (to.state === "STOOD_DOWN" && !to.unclosed) return words.say("next_over");
    if (OFFERS.has(to.state)) return words.say(to.due === null ? "accept_now" : "accept_by", values);
    const { unit } = to;
    const asked = to.units.filter((offer) => offer.state === ASKED).map((offer) => offer.unit);
    const isDesks = to.state === "ACKNOWLEDGED" && !unit;
    if (isDesks && to.due !== null && !to.units.length) return words.say("send_by", values);
    let next = words.say(`next_${to.state}`);
    if (isDesks && asked.length) next = words.say("next_asked", { units: asked.join(", ") });
    else if (isDesks && to.units.length) next = words.say("next_unanswered");
    else if (to.state === "ACKNOWLEDGED" && unit) next = words.say("next_accepted", { unit });
    return to.due === null ? next : `${next} ${words.say("due_by", values)}`;
  }

  #destination(incident: Incident, to: Assignment): HTMLElement {
    const { words } = this;
    const name = this.nameOf(incident, to.subject);
    const state = make("p", { class: "state-line" }, make("strong", {}, name), " ", make("span", { class: `state state-${to.shown}` }, words.say(to.shown)));
    if (to.system) state.append(" ", make("span", { class: "by-system" }, words.say("by_system")));
    if (to.by && to.accepted !== null && !to.unit) {
      const by = to.by.split("/").at(-1) ?? to.by;
      state.append(" ", make("small", {}, words.say("by_whom", { by, at: timeOfDay(to.accepted) })));
    }
    const steps = make("div", { class: "do-line", role: "group", "aria-label": name });
    if (OFFERS.has(to.state)) steps.append(this.#button("acknowledge", incident, to, words.say("desk_acknowledge"), true));
    if (canSend(to)) steps.append(this.#button("open", incident, to, words.say("desk_send"), to.state === "ACKNOWLEDGED" && !isAsking(to)));
    const following = nextState(to);
    if (following) steps.append(this.#button("progress", incident, to, words.say(`desk_${following}`), true, following));
    if (canBeClosed(to)) steps.append(this.#button("close", incident, to, words.say("desk_close"), !following && !canSend(to)));
    if (canBeRefused(to)) steps.append(this.#button("reject", incident, to, words.say("desk_reject"), false));
    return make("article", { class: "destination", "data-assignment": to.id }, state, ...this.#sent(to), make("p", { class: "next" }), steps);
  }

  /** Units that were asked or sent, with their states; who asked or sent each, and when. */
  #sent(to: Assignment): HTMLElement[] {
    const { words } = this;
    const lines = to.units.map((offer) => {
      const isAccepted = offer.unit === to.unit;
      const state = isAccepted && PROGRESSION.includes(to.state) ? to.state : offer.state;
      const line = make("li", { "data-unit": offer.unit }, make("strong", {}, offer.unit), " ", make("span", { class: `state state-${state}` }, words.say(state)));
      if (offer.state === ASKED) line.append(" ", make("span", { "data-until": String(offer.until) }));
      const asked = words.say(offer.by ? "asked_by_officer" : "asked_by_leg", { by: offer.by, at: timeOfDay(offer.asked) });
      const accepted = isAccepted && to.accepted !== null ? `, ${words.say("accepted_at", { at: timeOfDay(to.accepted) })}` : "";
      line.append(" ", make("small", {}, asked + accepted));
      return line;
    });
    if (to.radio) {
      const { unit, by, at } = to.radio;
      lines.push(make("li", { class: "by-radio" }, words.say("sent_by_radio", { unit, by, at: timeOfDay(at) })));
    }
    return lines.length ? [make("ul", { class: "unit-offers" }, ...lines)] : [];
  }

  #button(act: Act, incident: Incident, to: Assignment, text: string, main: boolean, state?: string): HTMLElement {
    const attributes = { type: "button", class: main ? "do main" : "do", "data-act": `${act} ${to.id}` };
    const button = make("button", attributes, text);
    button.addEventListener("click", (event) => {
      // The second click of a double click would press the next step's button, which has come to the same place.
      if (event.detail < 2) this.act(act, incident, to, state);
    });
    return button;
  }

  #others(incident: Incident): void {
    const said = LEGS.filter((leg) => leg !== this.leg).flatMap((leg) => (incident.legs[leg] ?? []).map((to) => this.#otherWords(leg, to)));
    this.#part("card-others", said.join("\n"), () => said.map((line) => make("li", {}, line)));
  }

  #otherWords(leg: string, to: Assignment): string {
    const { words } = this;
    const said = [words.say("other_line", { leg: words.say(leg), state: words.say(to.state) })];
    if (to.offered !== null) said.push(words.say("other_offered", { at: timeOfDay(to.offered) }));
    if (to.accepted !== null) said.push(words.say("other_accepted", { at: timeOfDay(to.accepted) }));
    if (to.due !== null) said.push(words.say("other_due", { at: timeOfDay(to.due) }));
    if (to.closed) said.push(`${words.say(to.closed)}.`);
    return said.join(" ");
  }
}
