// The live page. Changes come as server-sent events: incidents and alerts at once, positions at most twice a second.

import { Alarms } from "./alarms";
import { ReviewBadge, showDevices } from "./badges";
import type { Reviews } from "./badges";
import { Card, canBeClosed, canBeRefused, canSend, isAsking, nextState } from "./card";
import type { Act, NamedOrder } from "./card";
import { Connection } from "./connection";
import type { Beat } from "./connection";
import { ask } from "./dialogs";
import { Words } from "./words"; // before the map, by which the bundler names the part that pages share
import { LiveMap } from "./livemap";
import type { Unit } from "./livemap";
import { NoteForm, drawNotes } from "./notes";
import type { Note } from "./notes";
import { byId, painted, readPage } from "./page";
import { Rows } from "./rows";
import type { Assignment, Incident, Sort } from "./rows";
import { Sending } from "./sending";
import { flash, keepSoundBox, play } from "./sound";
import { streamOf } from "./stream";
import { incidentOf, subjectOf } from "./targets";
import type { Target } from "./targets";
import { Ticker } from "./ticker";
import type { Alert } from "./ticker";
import type { Destination, TrackPoint } from "./words";

interface Message extends Beat {
  reset: boolean;
  /** Absent for a role that decides none, and while the registry doesn't answer. */
  reviews: Reviews | null;
  /** Devices of the own side that need somebody; null while their number is unknown, absent for a role without devices. */
  devices?: number | null;
  incidents: Incident[];
  targets: Target[];
  units: Unit[];
  gone: string[];
  alerts: Alert[];
}

/** What the chosen incident's card asks of the server. */
interface Around {
  notes: Note[];
  rings: number[];
  tracks: Record<string, TrackPoint[]>;
}

const page = readPage();
const leg = page.leg ?? "";
const words = new Words(page.texts);
const text = (key: string): string => words.say(key);
const signIn = (): void => location.assign("/"); // the sign-in page says why the session ended
const connection = new Connection<Message>(words, receive, streamOf("/stream"), signIn);
const { now } = connection;
const alarms = new Alarms(words);
const reviews = new ReviewBadge(words, now, () => {
  flash(text("reviews"));
  alarms.sound("review");
});
/** Incident that another page named in the address, until it is shown; empty for none. */
let named = new URLSearchParams(location.search).get("incident") ?? "";

// ── the queue and the chosen incident ──

const rows = new Rows(byId("incidents"), words, leg, now, choose, acceptAll, closeAll);
/** Names that were disclosed, by incident. They are forgotten with the page. */
const names = new Map<string, NamedOrder[]>();
/** Whether the user has chosen the incident or worked with its card: then no other takes the card away. */
let isUsersChoice = false;
let notesSeen = -1;

const map = new LiveMap(byId("map"), page, words, (target) => nameOf(rows.incidents.get(incidentOf(target.id)), subjectOf(target.id)) || (target.sort && text(target.sort)));
const card = new Card(words, leg, now, (incident, subject) => nameOf(incident, subject) || subject, act, () => void showNames());
const noteForm = new NoteForm(addNote);
/** Absent for a role without a leg. */
const sending = leg ? new Sending(words, sendUnit) : undefined;

/** Name of a destination: of a person as it was disclosed, else what the leg says that it is. Empty where the leg doesn't say it. */
function nameOf(incident: Incident | undefined, subject: string): string {
  const orders = incident ? (names.get(incident.id) ?? []) : [];
  const person = orders.flatMap((order) => order.persons).find((known) => known.id === subject);
  if (person?.name) return `${text("protected")} ${person.name}`;
  const sort = incident ? sortOf(incident, subject) : "";
  if (!incident || !sort) return "";
  const respondent = sort === "wearer" ? orders[0]?.respondent.name : "";
  if (respondent) return `${text("wearer")} ${respondent}`;
  // An id tells destinations of one sort apart. A single one needs none.
  const alike = new Set(destinationsOf(incident).filter((to) => to.sort === sort).map((to) => to.subject));
  return alike.size > 1 ? `${text(sort)} ${subject.split("/").at(-1)}` : text(sort);
}

/** What a destination or target of an incident is, as the legs say it. */
function sortOf(incident: Incident, subject: string): Sort {
  const to = destinationsOf(incident).find((known) => known.subject === subject);
  return to?.sort || map.targets.get(`${incident.id}/${subject}`)?.sort || "";
}

function destinationsOf(incident: Incident): Assignment[] {
  return Object.values(incident.legs).flat();
}

function chosen(): Incident | undefined {
  return rows.incidents.get(rows.chosen);
}

function choose(incident: string): void {
  isUsersChoice = true;
  show(incident);
}

/** Shows an incident's card and fits the map to it. */
function show(incident: string): void {
  if (rows.chosen !== incident) sending?.close();
  rows.chosen = incident;
  rows.mark();
  card.refused("");
  notesSeen = -1;
  drawNotes([], words);
  noteForm.show(incident);
  drawCard();
  // List and card say first what happens: a computer without a graphics processor draws the map for longer than a frame.
  void painted().then(() => {
    if (rows.chosen !== incident) return;
    map.choose(incident);
    void readAround(incident);
  });
}

/** Chooses an incident where none is chosen any more, and says where a more urgent one waits. */
function chooseFirst(): void {
  const first = rows.first();
  const present = chosen();
  const canReplace = first && !first.exercise && first.ended === null;
  // What the user neither chose nor touched gives way once it is over. An exercise is shown where nothing else is, but moves nothing: the
  // map stays until the user chooses it.
  if (!present || (!isUsersChoice && canReplace && (present.exercise || present.ended !== null))) {
    isUsersChoice = false;
    if (first && !first.exercise) show(first.id);
    else if (!first && rows.chosen) show("");
  }
  const shown = chosen();
  const waits = first && shown && first.id !== shown.id && first.level < shown.level && first.alarm && !first.exercise;
  byId("more-urgent").hidden = !waits;
}

function showUrgent(): void {
  const first = rows.first();
  if (first) choose(first.id);
}

function drawCard(): void {
  const incident = chosen();
  card.draw(incident, incident ? names.get(incident.id) : undefined, incident ? where(incident) : []);
}

function where(incident: Incident): string[] {
  if (!leg) return [text("where_reviewer")];
  if (incident.ended !== null) return [text("where_over")];
  const targets = map.targets.of(incident.id);
  const wearer = targets.find((target) => target.sort === "wearer");
  const to = targets
    .filter((target) => target.sort === "protected" || target.sort === "place")
    .map((target): Destination => ({ ...target, name: nameOf(incident, subjectOf(target.id)), isPlace: target.sort === "place" }));
  const place = wearer?.at ? map.place([wearer.at[0], wearer.at[1]], wearer.at[2]) : "";
  const said = words.where(wearer, place, wearer ? (map.tracks.get(wearer.id) ?? []) : [], to, now());
  if (leg === "probation") said.push(text("where_limits"));
  return said;
}

async function readAround(incident: string): Promise<void> {
  if (!incident) return;
  notesSeen = rows.incidents.get(incident)?.notes ?? 0;
  const answer = await fetch(`/incidents/${incident}/card`, { headers: { Accept: "application/json" } }).catch(() => undefined);
  if (rows.chosen !== incident) return;
  if (!answer?.ok) {
    card.refused(answer ? await answer.text() : text("note_away"));
    return;
  }
  const around = (await answer.json()) as Around;
  drawNotes(around.notes, words);
  for (const [id, track] of Object.entries(around.tracks)) map.tracks.set(id, track);
  map.showRings([...around.rings, ...(names.get(incident) ?? []).flatMap((order) => order.rings)]);
  drawCard();
}

// ── answers ──

/** Sends a form. Returns the answer, and shows in the card why it was refused. */
async function send(path: string, body: URLSearchParams): Promise<Response | undefined> {
  const headers = { "X-CSRF-Token": page.csrf, Accept: "application/json" };
  const answer = await fetch(path, { method: "POST", body, headers }).catch(() => undefined);
  const refused = answer?.ok ? "" : answer ? await answer.text() : text("answer_503");
  card.refused(refused);
  alarms.announce(refused || text("stored"));
  return answer?.ok ? answer : undefined;
}

function seen(to: Assignment): URLSearchParams {
  return new URLSearchParams({ assignment: to.id, offer: String(to.offer), seen: to.state });
}

function act(name: Act, incident: Incident, to: Assignment, state?: string): void {
  if (name === "open") sending?.open(incident, to, nameOf(incident, to.subject) || to.subject);
  else void answer(name, incident, to, state);
}

/** Sends a unit, or records one that was sent by radio. Returns why it was refused, or an empty text. */
async function sendUnit(incident: string, name: "send" | "radio", body: URLSearchParams): Promise<string> {
  isUsersChoice = true;
  if (await send(`/incidents/${incident}/${name}`, body)) return "";
  const refused = byId("card-refusal").textContent || text("answer_503");
  card.refused(""); // it is shown beside the units
  return refused;
}

async function answer(name: Exclude<Act, "open">, incident: Incident, to: Assignment, state?: string): Promise<boolean> {
  isUsersChoice = true;
  const body = seen(to); // the state that the user saw, also where a dialog is open for a while
  if (state) body.set("state", state);
  if (name === "close" || name === "reject") {
    const given = await ask(`ask-${name}`, nameOf(incident, to.subject) || to.subject);
    if (!given) return false;
    for (const [field, value] of given) body.set(field, value);
  }
  return Boolean(await send(`/incidents/${incident.id}/${name}`, body));
}

async function acceptAll(incident: Incident): Promise<void> {
  if (rows.chosen !== incident.id) choose(incident.id);
  for (const to of rows.offers(incident)) if (!(await answer("acknowledge", incident, to))) return;
}

/** Closes all tasks of an ended incident that the own desk has to close, with one cause. */
async function closeAll(incident: Incident): Promise<void> {
  if (rows.chosen !== incident.id) choose(incident.id);
  const unclosed = rows.unclosed(incident);
  const given = await ask("ask-close", unclosed.map((to) => nameOf(incident, to.subject) || to.subject).join(", "));
  for (const to of given ? unclosed : []) {
    const body = seen(to);
    for (const [field, value] of given ?? []) body.set(field, value);
    if (!(await send(`/incidents/${incident.id}/close`, body))) return;
  }
}

async function addNote(incident: string, note: URLSearchParams): Promise<string> {
  if (!(await send(`/incidents/${incident}/notes`, note))) return byId("card-refusal").textContent || text("note_away");
  await readAround(incident);
  return "";
}

async function showNames(): Promise<void> {
  const incident = chosen();
  if (!incident || !leg || names.has(incident.id)) return;
  isUsersChoice = true;
  const basis = await ask("ask-names", "");
  const answer = basis && (await send(`/incidents/${incident.id}/names`, basis));
  if (!answer) return;
  names.set(incident.id, ((await answer.json()) as { orders: NamedOrder[] }).orders);
  if (rows.chosen === incident.id) await readAround(incident.id);
}

// ── keys ──

/** The own leg's first destination for which a condition holds. */
function first(condition: (to: Assignment) => boolean): Assignment | undefined {
  return (chosen()?.legs[leg] ?? []).find(condition);
}

function actOnFirst(name: Act, condition: (to: Assignment) => boolean): void {
  const incident = chosen();
  const to = first(condition);
  if (incident && to) act(name, incident, to, name === "progress" ? nextState(to) : undefined);
}

/** Sends the chosen unit, opens the list of units, or reports the next step: what the first destination that waits for it needs. */
function step(): void {
  if (sending?.isOpen) sending.submit();
  else if (first((to) => canSend(to) && !isAsking(to))) actOnFirst("open", (to) => canSend(to) && !isAsking(to));
  else if (first((to) => nextState(to) !== undefined)) actOnFirst("progress", (to) => nextState(to) !== undefined);
  else actOnFirst("open", canSend);
}

const KEYS: Record<string, () => void> = {
  j: () => rows.move(1),
  k: () => rows.move(-1),
  u: showUrgent,
  a: () => {
    const incident = chosen();
    if (incident) void acceptAll(incident);
  },
  s: step,
  r: () => actOnFirst("reject", canBeRefused),
  c: () => actOnFirst("close", canBeClosed),
  w: () => void showNames(),
  n: () => noteForm.focus(),
  f: () => map.fit(),
  Enter: () => {
    if (sending?.isOpen) sending.submit();
    else if (rows.chosen) location.assign(`/incidents/${rows.chosen}`);
  },
  "?": () => byId<HTMLDialogElement>("help").showModal(),
};

document.addEventListener("keydown", (event) => {
  const on = event.target instanceof HTMLElement ? event.target : document.body;
  if (event.ctrlKey || event.altKey || event.metaKey || on.closest("input, select, textarea, dialog")) return;
  // A key that is held down moves through the queue, and does anything else once: the next step would follow on the last one.
  if (event.repeat && event.key !== "j" && event.key !== "k") {
    if (event.key === "Enter") event.preventDefault();
    return;
  }
  // Enter does what the focused control does, but on a row of the queue, which is chosen already.
  if (event.key === "Enter" && on.closest("a, button") && !on.matches(".chosen-row .pick")) return;
  const work = KEYS[event.key];
  if (!work) return;
  event.preventDefault();
  work();
});

byId("show-help").addEventListener("click", () => KEYS["?"]?.());
byId("fit").addEventListener("click", () => map.fit());
byId("more-urgent").addEventListener("click", showUrgent);
for (const use of ["pointerdown", "focusin"]) byId("chosen").addEventListener(use, () => (isUsersChoice = true));
byId<HTMLInputElement>("ended").addEventListener("change", (event) => {
  rows.showEnded = (event.target as HTMLInputElement).checked;
  drawList();
});

// ── alerts ──

const ticker = new Ticker(words, `${page.role} ${page.name}`, (incident) => rows.incidents.has(incident) && choose(incident), subjectName);

/** What an alert is about, as it says itself, or as the legs say of its target: an alert names a place by its own id, without the order. */
function subjectName(alert: Alert): string {
  const incident = rows.incidents.get(alert.incident);
  const to = incident && destinationsOf(incident).find(({ subject }) => subject === alert.target || subject.endsWith(`/${alert.target}`));
  return text(alert.sort || (alert.target && to?.sort) || "order");
}

// ── messages ──

function drawList(): void {
  const count = rows.draw();
  byId("none").hidden = count > 0;
  const known = [...rows.incidents.values()];
  const unclosed = known.filter((incident) => incident.unclosed).length;
  byId("count").textContent = String(known.filter((incident) => incident.ended === null).length);
  byId("unclosed").textContent = unclosed ? words.say("bar_unclosed", { n: unclosed }) : "";
  chooseFirst();
}

function receive(message: Message): void {
  if (message.reset) {
    rows.incidents.clear();
    map.clear();
    ticker.clear();
  }
  for (const id of message.gone) {
    rows.incidents.delete(id);
    names.delete(id);
    alarms.forget(id);
    if (map.targets.delete(id) || map.units.delete(id)) map.moved(id);
  }
  if (message.reset) alarms.forgetAllBut(new Set(message.incidents.map((incident) => incident.id)));
  for (const target of message.targets) {
    map.targets.put(target);
    map.moved(target.id);
  }
  for (const unit of message.units) {
    map.units.set(unit.id, unit);
    map.moved(unit.id);
  }
  for (const incident of message.incidents) {
    rows.incidents.set(incident.id, incident);
    sending?.changed(incident.id);
    alarms.receive(incident);
  }
  if (message.incidents.length || message.alerts.length) map.waitFor(painted());
  if (message.alerts.length) ticker.add(message.alerts);
  if (message.reset || message.incidents.length || message.gone.length) drawList();
  if (rows.incidents.has(named)) {
    choose(named);
    named = "";
    history.replaceState(null, "", "/");
  }
  if (message.incidents.length) ticker.rename();
  const incident = chosen();
  const hasNotes = incident && notesSeen >= 0 && incident.notes !== notesSeen;
  const hasRings = incident && message.alerts.some((alert) => alert.incident === incident.id && !map.hasRing(alert.ring));
  if (hasNotes || hasRings) void readAround(incident.id);
  reviews.receive(message.reviews);
  showDevices(message.devices, words);
  drawCard();
}

keepSoundBox();
byId("test-sound").addEventListener("click", () => play("demand"));
connection.open();
setInterval(() => {
  rows.isCurrent = card.isCurrent = connection.isCurrent;
  rows.tick();
  if (connection.hasHeard) {
    for (const id of map.targets.expire(now())) map.moved(id);
    drawCard();
    reviews.tick();
  }
  connection.show();
}, 1_000);
