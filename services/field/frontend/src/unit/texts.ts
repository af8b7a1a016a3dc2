// Texts of the unit's page, in the language that was chosen.

import { keep, setting } from "../kept";

const LANGUAGES = ["ko", "en"];
let texts: Record<string, string> = {};

export const t = (name: string, values: Record<string, string | number> = {}): string =>
  Object.entries(values).reduce((text, [key, value]) => text.replace(`{${key}}`, String(value)), texts[name] ?? name);
export const has = (name: string): boolean => name in texts;

export async function speak(language: string): Promise<void> {
  texts = await (await fetch(`/static/unit-${language}.json`)).json();
  document.documentElement.lang = language;
  document.title = t("name");
  for (const element of document.querySelectorAll<HTMLElement>("[data-text]")) element.textContent = t(element.dataset["text"]!);
  for (const element of document.querySelectorAll<HTMLElement>("[data-label]")) element.ariaLabel = t(element.dataset["label"]!);
  (document.getElementById("language") as HTMLSelectElement).value = language;
  await keep("language", language);
  await keep("push_line", t("push_line"));
}

export async function chosenLanguage(): Promise<string> {
  const chosen = (await setting<string>("language")) ?? navigator.language.slice(0, 2);
  return LANGUAGES.includes(chosen) ? chosen : "ko";
}

export const clock = (ms: number): string =>
  new Date(ms).toLocaleTimeString(document.documentElement.lang, { hour: "2-digit", minute: "2-digit", second: "2-digit" });

export function span(ms: number): string {
  const seconds = Math.max(0, Math.round(Math.abs(ms) / 1_000));
  return seconds < 120 ? t("seconds", { n: seconds }) : t("minutes", { n: Math.round(seconds / 60) });
}

export function made(tag: string, text = "", name = ""): HTMLElement {
  const element = document.createElement(tag);
  if (text) element.textContent = text;
  if (name) element.className = name;
  return element;
}

export function button(text: string, act: () => void, name = ""): HTMLButtonElement {
  const element = made("button", text, name) as HTMLButtonElement;
  element.type = "button";
  element.addEventListener("click", act);
  return element;
}
