// The live page. Changes come as server-sent events, at most twice a second.

import { LiveMap } from "./livemap";
import type { Target, Unit } from "./livemap";
import { byId, make, readPage, timeOfDay } from "./page";
import { Rows } from "./rows";
import type { Assignment, Incident } from "./rows";

interface Alert {
  id: string;
  at: number;
  kind: string;
  demand: string;
  incident: string;
  wearer: string;
  target: string;
  ring: number;
  distance: number | null;
  exercise: boolean;
}

/** Match reviews that wait for a person. */
interface Reviews {
  open: number;
  /** Since when the oldest has been waiting, in ms since 1970 UTC. */
  since_ms: number | null;
  /** Reviews that have waited for 15 minutes or more. */
  alarmed: number;
}

interface Message {
  reset: boolean;
  now: number;
  rate: number;
  away: Record<string, string>;
  /** Absent for a role that decides none, and while the registry doesn't answer. */
  reviews: Reviews | null;
  incidents: Incident[];
  targets: Target[];
  units: Unit[];
  gone: string[];
  alerts: Alert[];
}

const SILENT_MS = 12_000;
const RECONNECT_MS = 3_000;
const MAX_ALERTS = 100;

const page = readPage();
const texts = page.texts;
const text = (key: string): string => texts[key] ?? key;
let offsetMs = 0;
let rate = 1;
let wallAtMs = 0;
/** Time by the mesh's clock, in ms since 1970 UTC. */
const now = (): number => (wallAtMs ? offsetMs + (Date.now() - wallAtMs) * rate : Date.now());

// ── list ──

const announce = byId("announce");
const rows = new Rows(byId<HTMLTableElement>("incidents").tBodies[0] as HTMLTableSectionElement, texts, page.leg ?? "", now, acknowledge);
const alarmed = new Set<string>();

function drawList(): void {
  const count = rows.draw();
  byId("none").hidden = count > 0;
  byId("count").textContent = String([...rows.incidents.values()].filter((incident) => incident.ended === null).length);
}

async function acknowledge(incident: string, assignment: Assignment): Promise<void> {
  const body = new URLSearchParams({ assignment: assignment.id, offer: String(assignment.offer), seen: assignment.state });
  const headers = { "X-CSRF-Token": page.csrf, Accept: "application/json" };
  const answer = await fetch(`/incidents/${incident}/acknowledge`, { method: "POST", body, headers });
  announce.textContent = answer.ok ? `${text("taken")}: ${assignment.subject}` : await answer.text();
}

byId<HTMLInputElement>("ended").addEventListener("change", (event) => {
  rows.showEnded = (event.target as HTMLInputElement).checked;
  drawList();
});

document.addEventListener("keydown", (event) => {
  const typing = event.target instanceof HTMLElement && event.target.closest("input, select, textarea");
  if (event.ctrlKey || event.altKey || event.metaKey || typing) return;
  if (event.key === "j") rows.move(1);
  else if (event.key === "k") rows.move(-1);
  else if (event.key === "a") rows.takeFocused();
});

setInterval(() => rows.tick(), 1_000);

// ── sound and title ──

let audio: AudioContext | undefined;

function beep(): void {
  audio ??= new AudioContext();
  // Browsers allow sound only after a user's gesture on the page; the title and the announcement work without one.
  void audio.resume();
  for (const [i, frequency] of [880, 660, 880].entries()) {
    const tone = audio.createOscillator();
    const volume = audio.createGain();
    volume.gain.value = 0.2;
    tone.frequency.value = frequency;
    tone.connect(volume).connect(audio.destination);
    tone.start(audio.currentTime + 0.25 * i);
    tone.stop(audio.currentTime + 0.25 * i + 0.2);
  }
}

const title = document.title;
let flashing: ReturnType<typeof setInterval> | undefined;

function flash(what: string): void {
  clearInterval(flashing);
  let on = false;
  flashing = setInterval(() => {
    on = !on;
    document.title = on ? `● ${what}` : title;
  }, 700);
}

function calm(): void {
  clearInterval(flashing);
  document.title = title;
}

for (const event of ["pointerdown", "keydown"]) document.addEventListener(event, calm);
byId("test-sound").addEventListener("click", beep);

function alarm(incident: Incident): void {
  alarmed.add(incident.id);
  announce.textContent = `${text("new_alarm")}: ${incident.id}`;
  flash(text("new_alarm"));
  if (byId<HTMLInputElement>("sound").checked) beep();
}

// ── match reviews ──

let reviews: Reviews | null = null;
let alarmedReviews = 0;

function showReviews(): void {
  const badge = document.getElementById("review-badge");
  if (!badge || !wallAtMs) return;
  const waiting = reviews?.open ?? 0;
  const minutes = Math.max(0, Math.floor((now() - (reviews?.since_ms ?? now())) / 60_000));
  const shown = reviews === null ? "?" : `${waiting} · ${minutes}${text("minutes")}`;
  if (badge.textContent !== shown) badge.textContent = shown;
  badge.title = reviews === null ? text("reviews_unknown") : "";
  badge.hidden = reviews !== null && waiting === 0;
  badge.classList.toggle("alarm", (reviews?.alarmed ?? 0) > 0);
}

function receiveReviews(received: Reviews | null): void {
  reviews = received;
  if (received) {
    const bar = byId("review-alarm");
    bar.hidden = received.alarmed === 0;
    const shown = received.alarmed ? `${text("reviews")} ${received.alarmed}: ${text("reviews_alarm")}` : "";
    const link = bar.querySelector("a");
    if (link && link.textContent !== shown) link.textContent = shown;
    // Each review sounds once, when its 15 minutes are over. It stays on the page until somebody decides it.
    if (received.alarmed > alarmedReviews) {
      flash(text("reviews"));
      if (byId<HTMLInputElement>("sound").checked) beep();
    }
    alarmedReviews = received.alarmed;
  }
  showReviews();
}

setInterval(showReviews, 1_000);

// ── alerts ──

function addAlerts(alerts: Alert[]): void {
  const list = byId("alerts");
  for (const alert of alerts) {
    const item = make("li", {}, make("time", {}, timeOfDay(alert.at)), " ");
    item.append(make("span", { class: `tag demand-${alert.demand}` }, text(alert.demand)), ` ${text(alert.kind)}`);
    if (alert.ring) item.append(` ${alert.ring} m`);
    if (alert.distance !== null) item.append(` (${Math.round(alert.distance)} m)`);
    if (alert.exercise) item.append(" ", make("span", { class: "exercise" }, text("exercise")));
    if (alert.incident) item.append(" ", make("a", { href: `/incidents/${alert.incident}` }, alert.target || alert.wearer));
    list.prepend(item);
  }
  while (list.children.length > MAX_ALERTS) list.lastElementChild?.remove();
  byId("no-alerts").hidden = list.children.length > 0;
}

// ── map ──

const map = new LiveMap(byId("map"), page.tiles, text);

// ── the connection ──

const connection = byId("connection");
let heardMs = 0;
let isOpen = false;
let away: Record<string, string> = {};

function showConnection(): void {
  const parts = Object.keys(away);
  const lost = !isOpen || Date.now() - heardMs > SILENT_MS;
  const key = lost ? (heardMs ? "lost" : "connecting") : parts.length ? "part_away" : "connected";
  const shown = key === "part_away" ? `${text(key)}: ${parts.join(", ")}` : text(key);
  if (connection.textContent !== shown) connection.textContent = shown;
  connection.className = `connection ${key === "connected" ? "ok" : key === "connecting" ? "wait" : "lost"}`;
}

function receive(message: Message): void {
  heardMs = wallAtMs = Date.now();
  offsetMs = message.now;
  rate = message.rate;
  away = message.away;
  if (message.reset) {
    rows.incidents.clear();
    map.clear();
    byId("alerts").replaceChildren();
  }
  for (const id of message.gone) {
    rows.incidents.delete(id);
    if (map.targets.delete(id) || map.units.delete(id)) map.moved(id);
  }
  for (const incident of message.incidents) {
    rows.incidents.set(incident.id, incident);
    if (!incident.alarm) alarmed.delete(incident.id);
    else if (!alarmed.has(incident.id)) alarm(incident);
  }
  for (const target of message.targets) {
    map.targets.set(target.id, target);
    map.moved(target.id);
  }
  for (const unit of message.units) {
    map.units.set(unit.id, unit);
    map.moved(unit.id);
  }
  if (message.alerts.length) addAlerts(message.alerts);
  if (message.reset || message.incidents.length || message.gone.length) drawList();
  receiveReviews(message.reviews);
  showConnection();
}

function connect(): void {
  const source = new EventSource("/stream");
  source.onopen = () => {
    isOpen = true;
  };
  source.onmessage = (event: MessageEvent<string>) => receive(JSON.parse(event.data) as Message);
  source.addEventListener("ended", () => location.assign("/")); // the sign-in page says why
  source.onerror = () => {
    isOpen = false;
    showConnection();
    // The browser reconnects by itself and names its last message, unless the request was refused: the session may have ended.
    if (source.readyState !== EventSource.CLOSED) return;
    setTimeout(connect, RECONNECT_MS);
    // Without a session the home page redirects to the sign-in page, which says why the session ended.
    fetch("/", { headers: { Accept: "text/html" }, redirect: "manual" })
      .then((home) => home.type === "opaqueredirect" && location.assign("/"))
      .catch(() => undefined);
  };
}

connect();
setInterval(showConnection, 1_000);
