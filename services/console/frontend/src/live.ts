// The live page. Changes come as server-sent events: incidents and alerts at once, positions at most twice a second.

import { Alarms } from "./alarms";
import { showDevices } from "./badges";
import type { Reviews } from "./badges";
import { Card, canBeClosed, canBeRefused, nextState } from "./card";
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
import type { Assignment, Incident } from "./rows";
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
const connection = new Connection<Message>(words, receive);
const { now } = connection;
const alarms = new Alarms(words, now);

// ── the queue and the chosen incident ──

const rows = new Rows(byId("incidents"), words, leg, now, choose, acceptAll);
/** Names that were disclosed, by incident. They are forgotten with the page. */
const names = new Map<string, NamedOrder[]>();
/** Whether the user has chosen the incident or worked with its card: then no other takes the card away. */
let isUsersChoice = false;
let notesSeen = -1;

const map = new LiveMap(byId("map"), page, words, (target) => nameOf(rows.incidents.get(incidentOf(target.id)), subjectOf(target.id)) || text(target.sort));
const card = new Card(words, leg, now, (incident, subject) => nameOf(incident, subject) || subject, act, () => void showNames());
const noteForm = new NoteForm(addNote);

/** Name of a destination: of a person as it was disclosed, else what it is. */
function nameOf(incident: Incident | undefined, subject: string): string {
  const orders = incident ? (names.get(incident.id) ?? []) : [];
  const person = orders.flatMap((order) => order.persons).find((known) => known.id === subject);
  if (person?.name) return `${text("protected")} ${person.name}`;
  const target = incident ? map.targets.get(`${incident.id}/${subject}`) : undefined;
  if (target?.sort === "wearer" || leg === "probation") {
    const respondent = orders[0]?.respondent.name;
    return respondent ? `${text("wearer")} ${respondent}` : text("wearer");
  }
  // An id tells destinations of one kind apart. A single one needs none.
  const isPlace = subject.includes("/");
  const alike = incident ? destinationsOf(incident).filter((other) => other.includes("/") === isPlace).length : 0;
  const kind = text(isPlace ? "place" : "protected");
  return alike > 1 ? `${kind} ${subject.split("/").at(-1)}` : kind;
}

/** Protected persons and places of an incident: the police's destinations. */
function destinationsOf(incident: Incident): string[] {
  return [...new Set((incident.legs["police"] ?? []).map((to) => to.subject))];
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
  const targets = map.targets.of(incident.id);
  const wearer = targets.find((target) => target.sort === "wearer");
  const to = targets
    .filter((target) => target.sort !== "wearer")
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
  void answer(name, incident, to, state);
}

async function answer(name: Act, incident: Incident, to: Assignment, state?: string): Promise<boolean> {
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

const KEYS: Record<string, () => void> = {
  j: () => rows.move(1),
  k: () => rows.move(-1),
  u: showUrgent,
  a: () => {
    const incident = chosen();
    if (incident) void acceptAll(incident);
  },
  s: () => actOnFirst("progress", (to) => nextState(to) !== undefined),
  r: () => actOnFirst("reject", canBeRefused),
  c: () => actOnFirst("close", canBeClosed),
  w: () => void showNames(),
  n: () => noteForm.focus(),
  f: () => map.fit(),
  Enter: () => {
    if (rows.chosen) location.assign(`/incidents/${rows.chosen}`);
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

/** What an alert is about: an alert names a place by its own id, without the order. */
function subjectName(alert: Alert): string {
  if (!alert.target) return text("wearer");
  const known = (rows.incidents.get(alert.incident)?.legs["police"] ?? []).map((to) => to.subject);
  if (known.some((subject) => subject.endsWith(`/${alert.target}`))) return text("place");
  return text(known.includes(alert.target) ? "protected" : "order");
}

// ── messages ──

function drawList(): void {
  const count = rows.draw();
  byId("none").hidden = count > 0;
  byId("count").textContent = String([...rows.incidents.values()].filter((incident) => incident.ended === null).length);
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
    alarms.receive(incident);
  }
  if (message.incidents.length || message.alerts.length) map.waitFor(painted());
  if (message.alerts.length) ticker.add(message.alerts);
  if (message.reset || message.incidents.length || message.gone.length) drawList();
  if (message.incidents.length) ticker.rename();
  const incident = chosen();
  const hasNotes = incident && notesSeen >= 0 && incident.notes !== notesSeen;
  const hasRings = incident && message.alerts.some((alert) => alert.incident === incident.id && !map.hasRing(alert.ring));
  if (hasNotes || hasRings) void readAround(incident.id);
  alarms.receiveReviews(message.reviews);
  showDevices(message.devices, words);
  drawCard();
}

connection.open();
setInterval(() => {
  rows.tick();
  if (connection.hasHeard) {
    for (const id of map.targets.expire(now())) map.moved(id);
    drawCard();
    alarms.tick();
  }
  connection.show();
}, 1_000);
