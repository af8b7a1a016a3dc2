// Notes and calls of the chosen incident. A note's text is never parsed as markup.

import { byId, make, timeOfDay } from "./page";
import type { Words } from "./words";

export interface Note {
  id: string;
  leg: string;
  at: number;
  by: string;
  kind: string;
  result: string;
  text: string;
  kept: boolean;
}

/** Lists notes, newest first. */
export function drawNotes(notes: Note[], words: Words): void {
  byId("no-notes").hidden = notes.length > 0;
  byId("notes").replaceChildren(
    ...[...notes].reverse().map((note) => {
      const kind = note.kind === "NOTE" ? "" : `${words.say(`note_${note.kind}`)}, ${words.say(`note_${note.result}`)}. `;
      const item = make("li", { "data-note": note.id, class: `of-${note.leg}` }, make("time", {}, timeOfDay(note.at)), " ");
      item.append(make("small", {}, `${words.say(note.leg)} · ${note.by}`));
      if (note.kept) item.append(" ", make("span", { class: "tag" }, words.say("note_kept_mark")));
      item.append(make("p", {}, `${kind}${note.text}`));
      return item;
    }),
  );
}

/** Returns a random key. `randomUUID` would need a secure context. */
function newKey(): string {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** Form for a note. `send` returns why it was refused, or an empty text. */
export class NoteForm {
  #form = document.getElementById("note-form") as HTMLFormElement | null;
  #key = newKey();
  #incident = "";

  constructor(send: (incident: string, note: URLSearchParams) => Promise<string>) {
    const form = this.#form;
    if (!form) return;
    this.#kind.addEventListener("change", () => this.#setKind());
    this.#share.addEventListener("change", () => this.#showShared());
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      const note = new URLSearchParams([...new FormData(form)].map(([name, value]) => [name, String(value)]));
      note.set("key", this.#key);
      note.set("share", this.#share.checked ? "yes" : "no");
      void send(this.#incident, note).then((refused) => {
        // A refused note stays in the form; the same key makes a repeated attempt the same note.
        if (refused) return;
        this.#key = newKey();
        this.#reset();
      });
    });
    this.#setKind();
  }

  get #kind(): HTMLSelectElement {
    return this.#form?.elements.namedItem("kind") as HTMLSelectElement;
  }

  get #share(): HTMLInputElement {
    return this.#form?.elements.namedItem("share") as HTMLInputElement;
  }

  #reset(): void {
    this.#form?.reset();
    this.#setKind();
  }

  /** Asks for a result of calls alone, and proposes with whom a note of the kind is shared. */
  #setKind(): void {
    const kind = this.#kind.selectedOptions[0];
    byId("note-result").hidden = kind?.value === "NOTE";
    this.#share.checked = kind?.dataset["shared"] === "yes";
    this.#showShared();
  }

  #showShared(): void {
    byId("note-shared").hidden = !this.#share.checked;
    byId("note-kept").hidden = this.#share.checked;
  }

  /** Shows the form for an incident; empty hides it. Text that was typed for another incident is dropped. */
  show(incident: string): void {
    if (!this.#form || incident === this.#incident) return;
    this.#incident = incident;
    this.#form.hidden = !incident;
    this.#reset();
    this.#key = newKey();
  }

  focus(): void {
    (this.#form?.elements.namedItem("text") as HTMLInputElement | null)?.focus();
  }
}
