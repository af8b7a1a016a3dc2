// The page that takes the app's place when she leaves it: a calendar. It needs no network. Her phone goes on reporting, and five presses on
// the name call the police here, too. Two presses on today's date lead back to the app.

import "./calendar.css";
import { HealthReports } from "./health";
import { keep, setting } from "./kept";
import { PANIC_PRESSES, PANIC_PRESSES_WITHIN_MS, onPresses } from "./presses";
import { Reporting } from "./reporting";
import { clock } from "./times";

const BACK_WITHIN_MS = 1_000;
const DRAW_MS = 1_000;
const HEALTH_MS = 5_000;
const SUNDAY = new Date(2023, 0, 1);

const find = <E extends HTMLElement = HTMLElement>(id: string) => document.getElementById(id) as E;
let drawnDay = "";

async function begin(): Promise<void> {
  const language = (await setting<string>("language")) ?? "ko";
  document.documentElement.lang = language;
  document.title = find("title").textContent = (await setting<string>("name")) ?? document.title;
  draw();
  setInterval(draw, DRAW_MS);
  if (await setting<boolean>("enrolled")) report();
}

function report(): void {
  const reporting = new Reporting(() => undefined);
  const health = new HealthReports();
  onPresses(find("title"), PANIC_PRESSES, PANIC_PRESSES_WITHIN_MS, () => void reporting.silentPanic());
  reporting.start();
  setInterval(() => reporting.state.ended || health.note(reporting.state.location), HEALTH_MS);
  const noteVisible = () => {
    if (!reporting.state.ended) health.note(reporting.state.location);
    void keep("hidden_ms", document.visibilityState === "visible" ? 0 : Date.now());
  };
  document.addEventListener("visibilitychange", noteVisible);
  noteVisible();
}

function draw(): void {
  const now = new Date();
  const language = document.documentElement.lang;
  find("clock").textContent = clock(now.getTime());
  if (now.toDateString() === drawnDay) return;
  drawnDay = now.toDateString();
  find("date").textContent = now.toLocaleDateString(language, { month: "long", day: "numeric", weekday: "long" });
  find("month").textContent = now.toLocaleDateString(language, { year: "numeric", month: "long" });
  const names = Array.from({ length: 7 }, (_, day) => new Date(SUNDAY.getTime() + day * 86_400_000 + 43_200_000));
  find("weekdays").replaceChildren(...names.map((day) => cell("th", day.toLocaleDateString(language, { weekday: "short" }))));
  const first = new Date(now.getFullYear(), now.getMonth(), 1).getDay();
  const count = new Date(now.getFullYear(), now.getMonth() + 1, 0).getDate();
  const weeks = Array.from({ length: Math.ceil((first + count) / 7) }, (_, week) => {
    const row = document.createElement("tr");
    row.append(...Array.from({ length: 7 }, (_, day) => dayCell(7 * week + day - first + 1, count, now.getDate())));
    return row;
  });
  find("days").replaceChildren(...weeks);
}

function dayCell(day: number, count: number, today: number): HTMLElement {
  if (day !== today) return cell("td", day < 1 || day > count ? "" : String(day));
  const current = cell("td", "");
  current.setAttribute("aria-current", "date");
  const button = Object.assign(document.createElement("button"), { type: "button", textContent: String(day) });
  onPresses(button, 2, BACK_WITHIN_MS, () => location.replace("/"));
  current.append(button);
  return current;
}

const cell = (tag: "td" | "th", text: string): HTMLElement => Object.assign(document.createElement(tag), { textContent: text });

void begin();
