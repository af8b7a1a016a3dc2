// The card of each offer and assignment, with the one next step as its largest button.

import type { Answer, Task } from "./duty";
import { type Target, panel } from "./target";
import { button, clock, has, made, span, t } from "./texts";

export const ASKED = ["offered", "escalated"];
export const ACCEPTED = ["acknowledged", "dispatched", "en_route", "on_scene", "apprehended"];
const NEXT: Record<string, string> = { acknowledged: "en_route", dispatched: "en_route", en_route: "on_scene", on_scene: "apprehended" };
const REASONS = ["busy", "far", "car", "other"];
const CAUSES = ["breach_confirmed", "nobody_found", "false_position", "equipment", "authorised"];

export interface Shown {
  own: { lat: number; lon: number } | undefined;
  targets: Iterable<Target>;
  waiting: readonly Answer[];
  ahead_ms: number; // how far the mesh's clock is ahead of the phone's
}

// Which list of choices is open, by assignment: it stays open while the card is redrawn.
const open = new Map<string, "reject" | "close">();

export function card(task: Task, shown: Shown, give: (answer: Answer) => void, redraw: () => void): HTMLElement {
  const element = made("article", "", `task ${ASKED.includes(task.state) ? "asked" : ""} ${task.state === "stood_down" ? "over" : ""}`);
  element.dataset["assignment"] = task.assignment;
  element.dataset["state"] = task.state;
  if (task.panic_ms) element.append(panic(task, task.panic_ms));
  if (task.is_exercise) element.append(made("p", t("exercise"), "alarm"));
  element.append(made("h3", title(task)));
  element.append(made("p", t(`to_${task.to}`) + ` · ${task.subject}`));
  element.append(made("p", t(`state_${ownState(task)}`)));
  element.append(facts(task, shown.ahead_ms));
  element.append(others(task));
  const places = made("div", "", "targets");
  if (ACCEPTED.includes(task.state)) for (const target of shown.targets) places.append(panel(target, shown.own));
  element.append(places);
  element.append(actions(task, shown, give, redraw));
  return element;
}

/** The first thing that the card says: that she called for help, and when, or that she took it back. */
function panic(task: Task, calledMs: number): HTMLElement {
  const isOver = task.panic_withdrawn_ms !== null || task.state === "stood_down";
  const said = task.panic_withdrawn_ms === null ? t("panic", { at: clock(calledMs) }) : t("panic_withdrawn", { at: clock(task.panic_withdrawn_ms) });
  return made("p", said, isOver ? "panic over" : "panic");
}

/** Whether an offer or assignment has a call for help that stands. */
export const isCalling = (task: Task): boolean => task.panic_ms !== null && task.panic_withdrawn_ms === null && task.state !== "stood_down";

const title = (task: Task): string =>
  task.is_check ? t("check") : has(`kind_${task.kind}`) ? t(`kind_${task.kind}`) : t("kind_other");

/** State of the unit itself: that it is asked or has accepted is another one than the assignment's. */
const ownState = (task: Task): string =>
  ASKED.includes(task.state) ? "unit_asked" : task.state === "acknowledged" ? "unit_accepted" : task.state;

function facts(task: Task, aheadMs: number): HTMLElement {
  const now = Date.now() + aheadMs;
  const lines: [string, string][] = [];
  if (task.asked_ms) lines.push([t("asked", { at: clock(task.asked_ms), for: span(now - task.asked_ms) }), ""]);
  if (task.open_until_ms) {
    // The leg says when the offer has ended. Until then the unit may accept, whatever this phone's clock says.
    const left = { at: clock(task.open_until_ms), for: span(task.open_until_ms - now) };
    lines.push([task.open_until_ms > now ? t("open_until", left) : t("open_past"), "due"]);
    lines.push([t(task.with_desk ? "asked_by_desk" : "asked_beside"), ""]);
  }
  if (task.travel_s !== null) lines.push([t("travel", { for: span(1_000 * task.travel_s) }), ""]);
  if (task.arrival_due_ms && task.state !== "on_scene" && task.state !== "apprehended") lines.push([t("arrival", { at: clock(task.arrival_due_ms) }), ""]);
  if (task.due_ms) lines.push([t(task.due_ms > now ? "due" : "due_past", { for: span(task.due_ms - now) }), "due"]);
  if (task.reminded_ms) lines.push([t(`reminded_${task.state}`), "alarm"]);
  if (task.losing) lines.push([t("losing"), "alarm"]);
  if (task.one_scene_ms) lines.push([t("one_scene"), "warn"]);
  if (task.spoofing_ms) lines.push([t("spoofing"), "warn"]);
  if (task.flag && has(`flag_${task.flag}`)) lines.push([t(`flag_${task.flag}`), task.flag === "duress" ? "alarm" : "warn"]);
  const group = made("div", "", "facts");
  group.append(...lines.map(([text, name]) => made("p", text, name)));
  return group;
}

function others(task: Task): HTMLElement {
  const list = made("ul", "", "others");
  for (const other of task.others) {
    const who = other.class ? ` (${other.class})` : "";
    list.append(made("li", `${t(`leg_${other.leg}`)}${who}: ${t(`state_${other.state}`)}`));
    if (other.distress_ms) list.append(made("li", t("other_distress", { leg: t(`leg_${other.leg}`) }), "alarm"));
  }
  if (!task.others.length && task.state !== "stood_down") list.append(made("li", t("others_none")));
  return list;
}

function actions(task: Task, shown: Shown, give: (answer: Answer) => void, redraw: () => void): HTMLElement {
  const group = made("div", "", "actions");
  group.dataset["offer"] = String(task.offer); // a button belongs to one offer
  const answer = (name: string, more: Partial<Answer> = {}) => {
    open.delete(task.assignment);
    give({ assignment: task.assignment, offer: task.offer, answer: name, ...more });
  };
  const choose = (what: "reject" | "close") => {
    if (open.get(task.assignment) === what) open.delete(task.assignment);
    else open.set(task.assignment, what);
    redraw();
  };
  if (shown.waiting.some((each) => each.assignment === task.assignment && each.answer !== "received")) {
    group.append(made("p", t("answer_waiting"), "warn"));
    return group;
  }
  const rest = made("div", "", "pair");
  if (ASKED.includes(task.state)) {
    group.append(button(t("do_accept"), () => answer("accepted"), "wide main"));
    rest.append(button(t("do_reject"), () => choose("reject")));
  } else if (NEXT[task.state]) {
    group.append(button(t(`do_${NEXT[task.state]}`), () => answer(NEXT[task.state]!), "wide main"));
    if (task.state === "en_route" || task.state === "on_scene") rest.append(button(t(`do_assured_${task.state}`), () => answer("assured")));
    if (task.state !== "on_scene") rest.append(button(t("do_give_back"), () => choose("reject")));
    else rest.append(button(t("do_close"), () => choose("close")));
  } else if (task.state === "apprehended" || task.state === "stood_down") {
    group.append(button(t("do_close"), () => choose("close"), "wide main"));
  }
  group.append(rest);
  if (open.get(task.assignment) === "reject") group.append(choices("reason", REASONS, (reason) => answer("rejected", { reason: t(`reason_${reason}`) })));
  if (open.get(task.assignment) === "close") group.append(choices("cause", CAUSES, (cause) => answer("closed", { cause })));
  return group;
}

function choices(kind: string, names: string[], act: (name: string) => void): HTMLElement {
  const group = made("div", "", kind);
  group.append(made("p", t(`${kind}_title`)));
  for (const name of names) {
    const choice = button(t(`${kind}_${name}`), () => act(name), "wide");
    choice.dataset[kind] = name;
    group.append(choice);
  }
  return group;
}
