// The bar of open incidents on each page of a desk but the live one: their number, the most urgent one with its deadline, and its sound.
// It changes nothing else on the page, so that a form keeps what was typed.

import { Alarms } from "./alarms";
import type { Alarm } from "./alarms";
import { Connection } from "./connection";
import type { Beat } from "./connection";
import { byId, make, timeOfDay } from "./page";
import type { Incident } from "./rows";
import { keepSoundBox } from "./sound";
import { LEFT, streamOf } from "./stream";
import type { Listener, Relayed } from "./stream";
import { Words } from "./words";
import type { Texts } from "./words";

interface Bar extends Beat {
  open: number;
  unclosed: number;
  first: Incident | null;
  alarms: Alarm[];
}

/** Window in which the live page opens where this one holds what was typed. The next time it opens in the same one. */
const LIVE_WINDOW = "tandem-live";

const { texts, user } = JSON.parse(byId("bar-data").textContent ?? "") as { texts: Texts; user: string };
const words = new Words(texts);
const connection = new Connection<Bar>(words, receive, shared, () => undefined);
const alarms = new Alarms(words);
const bar = byId("incident-bar");
let shown: Bar | undefined;

/** The stream of the worker that all pages of the user share; a stream of its own where the browser has no shared workers. */
function shared(listener: Listener): void {
  if (!("SharedWorker" in window)) return streamOf(`/stream/bar?user=${encodeURIComponent(user)}`)(listener);
  const { port } = new SharedWorker("/static/bar-worker.js", { type: "module", name: user });
  port.onmessage = ({ data }: MessageEvent<Relayed>) => {
    if ("heard" in data) listener.heard(data.heard, data.atMs);
    else if ("isOpen" in data) listener.changed(data.isOpen);
    else listener.ended();
  };
  addEventListener("pagehide", () => port.postMessage(LEFT));
}

function receive(message: Bar): void {
  shown = message;
  alarms.forgetAllBut(new Set(message.alarms.map((alarm) => alarm.id)));
  for (const alarm of message.alarms) alarms.receive(alarm);
  draw();
}

/** Draws what is known. What isn't of this moment any more has no deadline, and says of when it is. */
function draw(): void {
  if (!shown) return;
  const { isCurrent } = connection;
  const { first } = shown;
  bar.className = `incident-bar${first && !first.exercise ? ` level-${first.level}` : ""}${isCurrent ? "" : " old"}`;
  set("bar-open", words.say(shown.open ? "bar_open" : "bar_none", { n: shown.open }));
  set("bar-as-of", isCurrent ? "" : words.say("bar_as_of", { at: timeOfDay(shown.now) }));
  byId("bar-unclosed").hidden = !shown.unclosed;
  set("bar-unclosed", words.say("bar_unclosed", { n: shown.unclosed }));
  drawFirst(first);
  drawDue(first && isCurrent ? first.due : null);
}

function drawFirst(first: Incident | null): void {
  const link = byId<HTMLAnchorElement>("bar-first");
  link.hidden = !first;
  if (!first) return;
  link.href = `/?incident=${encodeURIComponent(first.id)}`;
  const parts = [
    first.exercise ? make("span", { class: "exercise" }, words.say("exercise")) : "",
    first.panic ? make("strong", { class: first.panic.withdrawn_ms === null ? "panic" : "panic over" }, words.panic(first.panic)) : "",
    make("span", { class: `tag demand-${first.demand}` }, words.say(first.demand)),
    `${words.say(first.cause)} ${timeOfDay(first.opened)}`,
  ].filter(Boolean);
  const said = parts.map((part) => (typeof part === "string" ? part : part.outerHTML)).join();
  if (link.dataset["said"] === said) return;
  link.dataset["said"] = said;
  link.replaceChildren(...parts.flatMap((part) => [part, " "]));
}

function drawDue(due: number | null): void {
  const now = connection.now();
  const countdown = due === null ? "" : words.countdown(due, now);
  set("bar-due", due === null || due < now ? countdown : `${words.say("deadline")} ${countdown}`);
  byId("bar-due").classList.toggle("bad", due !== null && due - now < 10_000);
}

function set(id: string, said: string): void {
  const part = byId(id);
  if (part.textContent !== said) part.textContent = said;
}

/** Whether the page holds something that the user typed or chose, or that was refused: it would be lost with the page. */
function holdsTyped(): boolean {
  if (document.querySelector("main .refusal:not([hidden])")) return true;
  return [...document.querySelectorAll<Field>("main form :is(input, textarea, select)")].some(isChanged);
}

type Field = HTMLInputElement | HTMLTextAreaElement | HTMLSelectElement;

function isChanged(field: Field): boolean {
  if (field instanceof HTMLSelectElement) {
    const given = [...field.options].findIndex((option) => option.defaultSelected);
    return field.selectedIndex !== Math.max(0, given);
  }
  const isBox = field instanceof HTMLInputElement && (field.type === "checkbox" || field.type === "radio");
  return isBox ? field.checked !== field.defaultChecked : field.value !== field.defaultValue;
}

// One click leads to the incident. A page that holds something typed stays as it is: the live page opens beside it.
for (const link of bar.querySelectorAll("a")) link.addEventListener("click", () => (link.target = holdsTyped() ? LIVE_WINDOW : ""));

keepSoundBox();
byId("sound-choice").hidden = false;
connection.show();
connection.open();
setInterval(() => {
  connection.show();
  draw();
}, 1_000);
